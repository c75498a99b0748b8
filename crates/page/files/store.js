// Conversations, kept by the browser. A conversation is a tree: what was edited or asked again is a branch beside what was
// there before.

const NAME = "moi";
const STORE = "conversations";

let database;

function open() {
  database ??= new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => request.result.createObjectStore(STORE, { keyPath: "id" });
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
  return database;
}

async function run(mode, act) {
  const store = (await open()).transaction(STORE, mode).objectStore(STORE);
  return new Promise((resolve, reject) => {
    const request = act(store);
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

export const read = (id) => run("readonly", (store) => store.get(id));
export const all = () => run("readonly", (store) => store.getAll());

/** Keeps a conversation. What another tab has added to it meanwhile stays, and is taken over here. */
export async function save(conversation) {
  const store = (await open()).transaction(STORE, "readwrite").objectStore(STORE);
  return new Promise((resolve, reject) => {
    const known = store.get(conversation.id);
    known.onerror = () => reject(known.error);
    known.onsuccess = () => {
      if (known.result) union(conversation, known.result);
      const put = store.put(conversation);
      put.onsuccess = () => resolve();
      put.onerror = () => reject(put.error);
    };
  });
}

function union(own, other) {
  const more = (place, others) => place.children.push(...others.children.filter((id) => !place.children.includes(id)));
  for (const [id, node] of Object.entries(other.nodes)) {
    if (!own.nodes[id]) own.nodes[id] = node;
    else if (!own.nodes[id].done && node.done) Object.assign(own.nodes[id], { runs: node.runs, done: true, error: node.error });
  }
  more(own.root, other.root);
  for (const [id, node] of Object.entries(other.nodes)) more(own.nodes[id], node);
}
export const remove = (id) => run("readwrite", (store) => store.delete(id));

const newId = () => Array.from(crypto.getRandomValues(new Uint8Array(9)), (byte) => byte.toString(36).padStart(2, "0")).join("");

/** A conversation with nothing said in it. */
export const create = (settings) => ({
  id: newId(), title: "New chat", updated: Date.now(), settings, nodes: {}, root: { children: [], chosen: null },
});

const childrenOf = (conversation, parent) => parent ? conversation.nodes[parent] : conversation.root;

/** Adds a message behind another one, or at the beginning, and chooses it. */
export function add(conversation, parent, message) {
  const node = { ...message, id: newId(), parent, children: [], chosen: null };
  conversation.nodes[node.id] = node;
  const place = childrenOf(conversation, parent);
  place.children.push(node.id);
  place.chosen = node.id;
  return node;
}

/** The messages that are shown: from the beginning along the chosen branches. */
export function path(conversation) {
  const nodes = [];
  for (let id = conversation.root.chosen; id; id = conversation.nodes[id].chosen) nodes.push(conversation.nodes[id]);
  return nodes;
}

/** The messages up to one, which is not among them. */
export function before(conversation, node) {
  const nodes = [];
  for (let id = node.parent; id; id = conversation.nodes[id].parent) nodes.unshift(conversation.nodes[id]);
  return nodes;
}

/** The branches at a message, and the place of it among them. */
export function branches(conversation, node) {
  const { children } = childrenOf(conversation, node.parent);
  return { children, at: children.indexOf(node.id) };
}

/** Chooses another branch. */
export function choose(conversation, node, id) {
  childrenOf(conversation, node.parent).chosen = id;
}

/** Conversations of a file that was exported, with ids of their own. Settings that are none become `settings`. */
export function imported(text, settings) {
  const read = JSON.parse(text);
  const list = read.moi === STORE ? read.conversations : null;
  if (!Array.isArray(list) || !list.every((c) => c && typeof c.title === "string" && isTree(c))) {
    throw new Error("the file has no conversations of this page");
  }
  return list.map((conversation) => renamed(conversation, settings));
}

const isSettings = (of) => of && Array.isArray(of.rules) && of.rules.length && of.rules.every((rule) => typeof rule === "string")
  && typeof of.system === "string" && of.fields && typeof of.fields === "object";

/** A conversation whose nodes have other ids: the one that it was exported from may be here still. */
function renamed({ title, nodes, root, settings: own }, settings) {
  const names = new Map(Object.keys(nodes).map((id) => [id, newId()]));
  const place = ({ children, chosen }) => ({ children: children.map((id) => names.get(id)), chosen: names.get(chosen) ?? null });
  const node = (node) => {
    const { id, parent, role } = node;
    const base = { id: names.get(id), parent: names.get(parent) ?? null, role, ...place(node) };
    if (role !== "assistant") return { ...base, role: "user", text: node.text };
    // Nothing is asked for by itself.
    return { ...base, runs: node.runs, done: true, error: typeof node.error === "string" ? node.error : null,
      request: isSettings(node.request) ? node.request : { ...settings, seed: 0 }, pick: node.runs[node.pick] ? node.pick : 0, asText: Boolean(node.asText) };
  };
  const renamed = Object.fromEntries(Object.values(nodes).map((own) => [names.get(own.id), node(own)]));
  return { id: newId(), title: title.slice(0, 200), updated: Date.now(), settings: isSettings(own) ? own : settings, nodes: renamed, root: place(root) };
}

function isTree({ nodes, root }) {
  const isList = (place) => place && Array.isArray(place.children) && (place.chosen === null || place.children.includes(place.chosen));
  if (typeof nodes !== "object" || !nodes || !isList(root)) return false;
  const seen = new Set();
  const walk = [...root.children];
  while (walk.length) {
    const node = nodes[walk.pop()];
    if (!node || nodes[node.id] !== node || seen.has(node.id) || !isList(node)) return false;
    if (node.role === "assistant" ? !Array.isArray(node.runs) || !node.runs.length || !node.runs.every(isRun)
      : typeof node.text !== "string") return false;
    seen.add(node.id);
    walk.push(...node.children);
  }
  // What nobody can reach is none of the tree.
  return seen.size === Object.keys(nodes).length;
}

const isRun = (run) => run && typeof run.text === "string" && typeof run.thoughts === "string" && typeof run.spec === "string"
  && Array.isArray(run.ids) && Array.isArray(run.steps) && run.steps.every(isStep);
const isStep = (step) => step && typeof step.text === "string" && typeof step.piece === "string"
  && [step.entropy, step.gate, step.logprob].every(Number.isFinite) && Array.isArray(step.top) && Array.isArray(step.likeliest);

export const exported = (conversations) => JSON.stringify({ moi: STORE, version: 1, conversations });
