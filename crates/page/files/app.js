// The chat page: conversations, questions and their answers.
import { AnswerView, compare, newRun, take } from "./answer.js";
import { ApiError, ask, setKey, stream } from "./api.js";
import { Markdown } from "./markdown.js";
import * as settingsOf from "./settings.js";
import * as store from "./store.js";
import { detail, make } from "./trace.js";

const by = (id) => document.getElementById(id);
const state = { model: null, rules: [], conversations: [], current: null, views: new Map(), running: new Map(), chosen: null };
/** How often, and how long after each other in milliseconds, an answer is asked for again whose connection was lost. */
const RETRIES = [500, 1000, 2000, 4000, 8000];

const button = (text, onclick, label) => make("button", { type: "button", onclick, ...(label ? { "aria-label": label, title: label } : {}) }, text);

// ---- Keeping

const pending = new Map();
/** Conversations that the browser keeps as they are. */
const kept = new WeakSet();

/** Keeps a conversation, soon: not at each of its tokens. */
function keep(conversation) {
  if (!state.conversations.includes(conversation)) return;
  conversation.updated = Date.now();
  kept.delete(conversation);
  if (pending.has(conversation.id)) return;
  pending.set(conversation.id, { conversation, timer: setTimeout(() => flush(conversation.id), 700) });
}

async function flush(id) {
  const entry = pending.get(id);
  if (!entry) return;
  clearTimeout(entry.timer);
  pending.delete(id);
  try {
    await store.save(entry.conversation);
    if (!pending.has(id)) kept.add(entry.conversation);
  } catch (error) {
    tell("The conversation cannot be kept: " + error.message);
  }
}

addEventListener("pagehide", () => [...pending.keys()].forEach(flush));

/** Says something to people who cannot see it happen. */
function tell(text) {
  by("said").textContent = text;
}

// ---- Conversations

/** The conversation of an entry of the list, which may have its title alone. */
async function loaded({ id }) {
  // An entry that was drawn may be another one now: what the list has counts.
  const place = () => state.conversations.findIndex((entry) => entry.id === id);
  const listed = state.conversations[place()];
  if (listed?.nodes) return listed;
  const conversation = await store.read(id);
  const at = place();
  if (!conversation || at < 0) {
    state.conversations = state.conversations.filter((entry) => entry.id !== id);
    throw new Error("the conversation is not there any more");
  }
  // It may have been asked for twice.
  if (state.conversations[at].nodes) return state.conversations[at];
  state.conversations[at] = conversation;
  kept.add(conversation);
  return conversation;
}

/** Has the list keep the title alone of a conversation that the browser keeps, that nobody sees and in which nothing goes on. */
function unload(conversation) {
  const at = state.conversations.indexOf(conversation);
  const isBusy = conversation === state.current || Object.keys(conversation.nodes).some((id) => state.running.has(id));
  if (at < 0 || isBusy || !kept.has(conversation)) return;
  const { id, title, updated } = conversation;
  state.conversations[at] = { id, title, updated, isEmpty: false };
}

const failed = (error) => tell("The conversation cannot be opened: " + error.message);
const isEmpty = (entry) => entry.nodes ? !Object.keys(entry.nodes).length : entry.isEmpty;
/** Shows a conversation; a new one where it cannot be read and nothing else is shown. */
const open = (entry) => loaded(entry).then(show).catch((error) => {
  failed(error);
  if (!state.conversations.includes(state.current)) show(fresh());
  else drawConversations();
});

function drawConversations() {
  state.conversations.sort((a, b) => b.updated - a.updated);
  by("conversations").replaceChildren(...state.conversations.map((conversation) => {
    const isCurrent = conversation === state.current;
    const title = button(conversation.title, () => open(conversation));
    if (isCurrent) title.setAttribute("aria-current", "true");
    return make("li", { class: isCurrent ? "current" : "" }, title,
      button("✎", () => rename(conversation).catch(failed), "Rename " + conversation.title),
      button("⤓", () => loaded(conversation).then((own) => download(own.title + ".json", "application/json", store.exported([own])))
        .catch(failed), "Export " + conversation.title),
      button("×", () => removeConversation(conversation), "Delete " + conversation.title));
  }));
}

async function rename(entry) {
  const title = prompt("Title", entry.title)?.trim();
  if (!title) return;
  const conversation = await loaded(entry);
  conversation.title = title;
  keep(conversation);
  drawConversations();
  by("title").textContent = state.current.title;
}

async function removeConversation(conversation) {
  if (!confirm(`Delete “${conversation.title}”?`)) return;
  // From here on nothing of it is kept, whatever still comes of its answers.
  state.conversations = state.conversations.filter((other) => other.id !== conversation.id);
  Object.keys(conversation.nodes ?? {}).forEach((id) => state.running.get(id)?.abort());
  clearTimeout(pending.get(conversation.id)?.timer);
  pending.delete(conversation.id);
  await store.remove(conversation.id);
  if (state.current.id === conversation.id) await open(state.conversations[0] ?? fresh());
  else drawConversations();
}

function fresh() {
  const settings = state.current ? structuredClone(state.current.settings) : settingsOf.initial(state.model.moi.rule);
  const conversation = store.create(settings);
  state.conversations.push(conversation);
  return conversation;
}

function show(conversation) {
  const before = state.current;
  state.current = conversation;
  if (before && before !== conversation) flush(before.id).then(() => unload(before));
  by("title").textContent = conversation.title;
  document.body.classList.remove("side-open");
  choose(null);
  drawConversations();
  drawSettings();
  drawThread();
  // Answers that a reload has cut off go on.
  for (const node of Object.values(conversation.nodes)) {
    if (node.role === "assistant" && !node.done && !node.error && !state.running.has(node.id)) answer(conversation, node);
  }
}

function download(name, kind, text) {
  const url = URL.createObjectURL(new Blob([text], { type: kind }));
  make("a", { href: url, download: name.replace(/[^\p{L}\p{N} ._-]/gu, "_").slice(0, 80) }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

// ---- Settings

function drawSettings() {
  const { settings } = state.current;
  by("rules").textContent = settings.rules.join("  |  ");
  by("settings-form").replaceChildren(...settingsOf.form(settings, state.rules, state.model.moi.sampling, () => {
    by("rules").textContent = settings.rules.join("  |  ");
    if (Object.keys(state.current.nodes).length) keep(state.current);
  }));
}

// ---- The thread

function drawThread() {
  state.views.clear();
  const nodes = store.path(state.current);
  by("thread").replaceChildren(...(nodes.length ? nodes.map(message) : [make("p", { class: "empty" },
    "Ask something. Every token is shaded by its entropy and underlined by its gate: how far the next input is a mixture.")]));
  drawComposer();
  scrollDown(true);
}

function scrollDown(always) {
  const thread = by("thread");
  if (always || thread.scrollHeight - thread.scrollTop - thread.clientHeight < 160) thread.scrollTop = thread.scrollHeight;
}

function message(node) {
  const article = make("article", { class: "message " + node.role, "aria-label": node.role === "user" ? "You" : "Answer" });
  const foot = make("div", { class: "foot" });
  if (node.role === "user") {
    const text = new Markdown();
    text.set(node.text);
    article.append(text.node);
    foot.append(...branching(node), button("Edit", () => edit(node, article)));
  } else {
    const view = new AnswerView(node, {
      choose: (_, run, s) => choose({ node, view: run, s }),
      pick: (at) => { node.pick = at; keep(state.current); },
    });
    state.views.set(node.id, { view, foot, error: make("p", { class: "error", role: "alert", hidden: true }), article });
    article.append(view.node, state.views.get(node.id).error);
    drawFoot(node);
  }
  article.append(foot);
  return article;
}

function branching(node) {
  const { children, at } = store.branches(state.current, node);
  if (children.length < 2) return [];
  const to = (place) => () => {
    store.choose(state.current, node, children[place]);
    keep(state.current);
    drawThread();
  };
  const back = button("‹", to(at - 1), "Earlier branch");
  const on = button("›", to(at + 1), "Later branch");
  back.disabled = at === 0;
  on.disabled = at === children.length - 1;
  return [make("span", { class: "branches" }, back, ` ${at + 1}/${children.length} `, on)];
}

function drawFoot(node) {
  const shown = state.views.get(node.id);
  if (!shown) return;
  shown.error.hidden = !node.error;
  shown.error.textContent = node.error ?? "";
  const parts = branching(node);
  if (state.running.has(node.id)) parts.push(button("Stop", () => state.running.get(node.id)?.abort()));
  else parts.push(button("Again", () => again(node, "Answer again"), "Answer again"));
  if (node.runs.some((run) => run.steps.length)) {
    const toggle = button(node.asText ? "Tokens" : "Text", () => {
      node.asText = !node.asText;
      shown.view.redraw();
      drawFoot(node);
      keep(state.current);
    }, node.asText ? "Show tokens" : "Show text");
    parts.push(toggle);
    if (node.done) parts.push(button("Save run", () => saveRun(node), "Save as a page that opens in any browser"));
  }
  const copy = button("Copy", async () => {
    await navigator.clipboard.writeText(node.runs[node.pick ?? 0].text);
    copy.textContent = "Copied";
  });
  parts.push(copy);
  shown.foot.replaceChildren(...parts);
}

function edit(node, article) {
  const text = make("textarea", { rows: Math.min(12, node.text.split("\n").length + 1), value: node.text, "aria-label": "Edited message" });
  const done = () => {
    const changed = text.value.trim();
    if (!changed) return;
    question(node.parent, changed);
  };
  text.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      done();
    }
    if (event.key === "Escape") drawThread();
  });
  article.replaceChildren(text, make("div", { class: "foot" }, button("Send", done), button("Cancel", drawThread)));
  text.focus();
}

// ---- Tokens

/** Shows what is known of a token, and what could have come in its place. */
function choose(chosen) {
  if (state.chosen && state.chosen.view !== chosen?.view) state.chosen.view.choose(null);
  state.chosen = chosen;
  by("detail").hidden = !chosen;
  document.body.classList.toggle("has-detail", Boolean(chosen));
  if (!chosen) return;
  const { node, view, s } = chosen;
  view.choose(s);
  const own = make("form", { class: "instead" }, make("label", {}, "Or write what comes instead", make("input", { name: "text", autocomplete: "off" })),
    make("button", {}, "Fork"));
  own.addEventListener("submit", async (event) => {
    event.preventDefault();
    const text = own.elements.text.value;
    if (!text) return;
    try {
      const { tokens } = await ask("tokenize", { prompt: text, add_special_tokens: false, parse_special: false });
      fork(state.current, node, view.run, s, tokens);
    } catch (error) {
      tell(error.message);
    }
  });
  const conversation = state.current;
  by("detail").replaceChildren(button("×", () => choose(null), "Close"),
    ...detail(view.run, s, (token) => fork(conversation, node, view.run, s, [token])),
    own, make("div", { class: "hint" }, make("kbd", {}, "←"), " ", make("kbd", {}, "→"), " walk. A fork has the same tokens up to here, then another."));
}

/** Answers anew with the same tokens up to a step, and others from there on: their mixtures are the same, too. */
function fork(conversation, node, run, s, tokens) {
  // Another chat may be shown by now.
  if (conversation !== state.current || !conversation.nodes[node.id]) return;
  choose(null);
  const request = { ...node.request, rules: [run.spec], seed: run.seed ?? node.request.seed, force: [...run.ids.slice(0, s), ...tokens] };
  const next = store.add(conversation, node.parent, { role: "assistant", request, runs: [newRun(run.spec)], done: false });
  keep(conversation);
  answer(conversation, next);
  drawThread();
}

async function saveRun(node) {
  const last = store.before(state.current, node).at(-1);
  const { title } = state.current;
  try {
    const template = await (await fetch("page/trace.html")).text();
    const { request } = node;
    const sampling = Object.entries(request.fields).filter(([name]) => name !== "seed").map(([name, value]) => `${name} ${value}`);
    const data = {
      model: state.model.id, device: "server", dtype: "", sampled: sampling.join(", ") || "as the model's makers advise",
      seed: request.seed, prompt: last?.text ?? "", prompt_tokens: [], runs: node.runs,
    };
    const json = JSON.stringify(data).replaceAll("<", "\\u003c");
    download(title + ".html", "text/html", template.replace("/*DATA*/", () => json));
  } catch (error) {
    tell(error.message);
  }
}

// ---- Asking

/** Asks something behind a message. */
function question(parent, text) {
  const conversation = state.current;
  if (conversation.title === "New chat") conversation.title = text.replace(/\s+/g, " ").slice(0, 48);
  const user = store.add(conversation, parent, { role: "user", text });
  again({ parent: user.id });
  by("title").textContent = conversation.title;
  drawConversations();
}

/** Another answer to the same. */
function again({ parent }) {
  const { settings } = state.current;
  const seed = settings.fields.seed ?? crypto.getRandomValues(new Uint32Array(1))[0];
  const request = structuredClone({ ...settings, seed });
  const node = store.add(state.current, parent, { role: "assistant", request, runs: request.rules.map(newRun), done: false });
  keep(state.current);
  answer(state.current, node);
  drawThread();
}

function messages(conversation, node) {
  const turns = store.before(conversation, node).map((turn) => turn.role === "user" ? { role: "user", content: turn.text }
    : { role: "assistant", content: turn.runs[turn.pick ?? 0].text });
  const { system } = node.request;
  return system ? [{ role: "system", content: system }, ...turns] : turns;
}

/** Has a message answered. Where another tab does, its answer is taken when it has come. */
async function answer(conversation, node) {
  const abort = new AbortController();
  state.running.set(node.id, abort);
  node.error = null;
  try {
    // Locks are there where the page's address is a safe one.
    if (!navigator.locks) await answered(conversation, node, abort.signal);
    else await navigator.locks.request("moi-" + node.id, { signal: abort.signal }, async () => {
      const kept = await store.read(conversation.id).catch(() => null);
      const other = kept?.nodes[node.id];
      if (other?.done) Object.assign(node, { runs: other.runs, error: other.error });
      else await answered(conversation, node, abort.signal);
    });
  } catch (error) {
    if (!abort.signal.aborted) node.error = error.message;
  }
  if (abort.signal.aborted) node.runs.forEach((run) => { run.stop_reason ??= "stopped"; run.seed ??= node.request.seed; });
  state.running.delete(node.id);
  node.done = true;
  if (node.runs.length > 1) compare(node.runs);
  state.views.get(node.id)?.view.redraw();
  drawFoot(node);
  drawComposer();
  keep(conversation);
  flush(conversation.id);
  tell(node.error ?? "The answer is complete: " + node.runs[0].text.slice(0, 200));
}

/** Asks for an answer; again from its beginning where the connection was lost, which gives the same tokens. */
async function answered(conversation, node, signal) {
  const { request } = node;
  const body = { messages: messages(conversation, node), ...settingsOf.request(request, request.seed) };
  if (request.force) body.moi.force = request.force;
  for (let lost = 0; ;) {
    try {
      return await once(conversation, node, body, signal, () => { lost = 0; });
    } catch (error) {
      if (error.status === 401) by("key-dialog").showModal();
      if (signal.aborted || !(error instanceof ApiError && error.isPassing && lost < RETRIES.length)) throw error;
      tell(error.message + "; trying again");
      await pause(RETRIES[lost], signal);
      lost += 1;
    }
  }
}

/** Waits, unless it is told to stop. */
const pause = (time, signal) => new Promise((resolve) => {
  setTimeout(resolve, time);
  signal.addEventListener("abort", resolve, { once: true });
});

async function once(conversation, node, body, signal, began) {
  // What is there already comes again: it is shown until as much has come.
  const runs = node.request.rules.map(newRun);
  const before = Math.max(...node.runs.map((run) => run.ids.length));
  let isShown = before === 0;
  const begun = performance.now();
  const swap = () => {
    node.runs = runs;
    isShown = true;
    if (conversation === state.current) drawThread();
  };
  if (isShown) swap();
  drawComposer();
  for await (const event of stream("v1/chat/completions", body, signal)) {
    began();
    for (const choice of event.choices) {
      const run = runs[choice.index];
      const hasStep = take(run, choice);
      run.speed = run.ids.length / Math.max(0.001, (performance.now() - begun) / 1000);
      if (!isShown && Math.max(...runs.map((run) => run.ids.length)) > before) swap();
      else if (isShown) state.views.get(node.id)?.view.grew(choice.index, hasStep);
    }
    if (isShown) keep(conversation);
    scrollDown(false);
  }
  if (!isShown) swap();
}

function drawComposer() {
  const nodes = state.current ? store.path(state.current) : [];
  const isRunning = nodes.some((node) => state.running.has(node.id));
  by("send").textContent = isRunning ? "Stop" : "Send";
  by("send").dataset.running = String(isRunning);
}

function send() {
  const nodes = store.path(state.current);
  const running = nodes.filter((node) => state.running.has(node.id));
  if (running.length) return running.forEach((node) => state.running.get(node.id).abort());
  const text = by("input").value.trim();
  if (!text) return;
  by("input").value = "";
  grow();
  question(nodes.at(-1)?.id ?? null, text);
}

/** As high as its text. */
function grow() {
  const input = by("input");
  input.style.height = "auto";
  input.style.height = Math.min(input.scrollHeight + 2, 240) + "px";
}

// ---- Beginning

function listen() {
  by("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  by("input").addEventListener("input", grow);
  by("input").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send();
  });
  by("new").addEventListener("click", () => {
    open(state.conversations.find(isEmpty) ?? fresh());
    by("input").focus();
  });
  by("settings-open").addEventListener("click", () => by("settings").showModal());
  by("settings").addEventListener("click", (event) => { if (event.target === by("settings")) by("settings").close(); });
  const side = (open) => {
    document.body.classList.toggle("side-open", open);
    by("side-open").setAttribute("aria-expanded", String(open));
  };
  by("side-open").addEventListener("click", () => side(!document.body.classList.contains("side-open")));
  by("side-close").addEventListener("click", () => side(false));
  by("export").addEventListener("click", async () => {
    try {
      // What is open is newer than what the browser keeps.
      const kept = new Map((await store.all()).map((conversation) => [conversation.id, conversation]));
      const all = state.conversations.map((entry) => entry.nodes ? entry : kept.get(entry.id)).filter(Boolean);
      download("moi-conversations.json", "application/json", store.exported(all));
    } catch (error) {
      failed(error);
    }
  });
  by("import").addEventListener("change", async (event) => {
    try {
      const added = store.imported(await event.target.files[0].text(), settingsOf.initial(state.model.moi.rule));
      state.conversations.push(...added);
      if (added[0]) show(added[0]);
      await Promise.all(added.map(store.save));
      added.forEach((conversation) => kept.add(conversation));
    } catch (error) {
      tell("The file was not imported: " + error.message);
      alert("The file was not imported: " + error.message);
    }
    event.target.value = "";
  });
  by("key").addEventListener("click", () => by("key-dialog").showModal());
  by("key-dialog").addEventListener("toggle", () => { if (by("key-dialog").open) by("key-dialog").returnValue = ""; });
  by("key-dialog").addEventListener("close", () => {
    if (by("key-dialog").returnValue !== "save") return;
    setKey(by("key-input").value.trim());
    by("key-input").value = "";
    begin();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && state.chosen) choose(null);
  });
}

async function begin() {
  try {
    const [models, rules] = await Promise.all([ask("v1/models"), ask("v1/moi/rules")]);
    [state.model, state.rules] = [models.data[0], rules.data];
  } catch (error) {
    if (error.status === 401) return by("key-dialog").showModal();
    by("thread").replaceChildren(make("p", { class: "error", role: "alert" }, error.message), button("Try again", begin));
    return undefined;
  }
  by("model").textContent = state.model.id;
  document.title = "moi: " + state.model.id;
  if (!state.conversations.length) {
    try {
      state.conversations = await store.titles();
    } catch (error) {
      tell("Conversations cannot be kept here: " + error.message);
    }
  }
  state.conversations.sort((a, b) => b.updated - a.updated);
  return open(state.conversations[0] ?? fresh());
}

listen();
begin();
