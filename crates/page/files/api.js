// The server's public endpoints, with the key where there is one.

const KEY = "moi-key";

/** What the server, or the way to it, says of a request that failed. */
export class ApiError extends Error {
  constructor(message, status, code) {
    super(message);
    Object.assign(this, { status, code });
  }

  /** Whether the same request may do better later. */
  get isPassing() {
    return this.status === 0 || this.status === 429 || this.status >= 502;
  }
}

export const setKey = (key) => key ? localStorage.setItem(KEY, key) : localStorage.removeItem(KEY);

async function send(path, body, signal) {
  const headers = {};
  const key = localStorage.getItem(KEY);
  if (key) headers.Authorization = "Bearer " + key;
  if (body) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new ApiError("the server cannot be reached", 0);
  }
  if (response.ok) return response;
  const text = await response.text();
  let error = {};
  try {
    error = JSON.parse(text).error ?? {};
  } catch {
    error = {};
  }
  throw new ApiError(error.message ?? (text.slice(0, 500) || response.statusText), response.status, error.code);
}

/** The JSON of an endpoint; posts a body where there is one. */
export const ask = async (path, body) => (await send(path, body)).json();

/** The events of a stream. Fails if it ends before it should. */
export async function* stream(path, body, signal) {
  const response = await send(path, { ...body, stream: true }, signal);
  const reader = response.body.getReader();
  try {
    yield* events(reader, signal);
  } finally {
    // Whoever stops reading leaves the answer.
    reader.cancel().catch(() => {});
  }
}

async function* events(reader, signal) {
  const decoder = new TextDecoder();
  let held = "";
  for (;;) {
    let piece;
    try {
      piece = await reader.read();
    } catch (error) {
      if (signal?.aborted) throw error;
      throw new ApiError("the connection was lost", 0);
    }
    if (piece.done) throw new ApiError("the connection was lost", 0);
    held += decoder.decode(piece.value, { stream: true });
    const blocks = held.split("\n\n");
    held = blocks.pop();
    for (const block of blocks) {
      if (!block.startsWith("data: ")) continue;
      if (block === "data: [DONE]") return;
      const data = JSON.parse(block.slice(6));
      if (data.error) throw new ApiError(data.error.message, 500, data.error.code);
      yield data;
    }
  }
}
