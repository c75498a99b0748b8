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

export const all = () => run("readonly", (store) => store.getAll());
export const save = (conversation) => run("readwrite", (store) => store.put(conversation));
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

/** Conversations of a file that was exported, with ids of their own. */
export function imported(text) {
  const read = JSON.parse(text);
  const list = read.moi === STORE ? read.conversations : null;
  if (!Array.isArray(list) || !list.every((c) => c && typeof c.title === "string" && isTree(c))) {
    throw new Error("the file has no conversations of this page");
  }
  return list.map((conversation) => ({ ...conversation, id: newId() }));
}

function isTree({ nodes, root }) {
  const isList = (place) => place && Array.isArray(place.children) && (place.chosen === null || place.children.includes(place.chosen));
  if (typeof nodes !== "object" || !nodes || !isList(root)) return false;
  const seen = new Set();
  const walk = [...root.children];
  while (walk.length) {
    const node = nodes[walk.pop()];
    if (!node || seen.has(node.id) || !isList(node)) return false;
    const runs = node.runs ?? [];
    if (node.role === "assistant" ? !runs.length || !runs.every((run) => Array.isArray(run.steps) && typeof run.text === "string")
      : typeof node.text !== "string") return false;
    seen.add(node.id);
    walk.push(...node.children);
  }
  return true;
}

export const exported = (conversations) => JSON.stringify({ moi: STORE, version: 1, conversations });
