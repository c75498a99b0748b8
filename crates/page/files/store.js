// Conversations, kept by the browser. A conversation is a tree: what was edited or asked again is a branch beside what was
// there before.

const NAME = "moi";
const STORE = "conversations";
/** What the list of conversations shows of each: they themselves may be large, and are read when they are opened. */
const TITLES = "titles";

const titleOf = ({ id, title, updated, nodes }) => ({ id, title, updated, isEmpty: !Object.keys(nodes).length });

let database;

function open() {
  database ??= new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, 2);
    request.onupgradeneeded = ({ oldVersion }) => {
      if (oldVersion < 1) request.result.createObjectStore(STORE, { keyPath: "id" });
      const titles = request.result.createObjectStore(TITLES, { keyPath: "id" });
      // Of conversations that are there already, one after the other.
      request.transaction.objectStore(STORE).openCursor().onsuccess = ({ target }) => {
        if (!target.result) return;
        titles.put(titleOf(target.result.value));
        target.result.continue();
      };
    };
    request.onblocked = () => reject(new Error("an older page is open in another tab; close it, and reload this one"));
    request.onsuccess = () => {
      // A newer page in another tab waits for this.
      request.result.onversionchange = () => request.result.close();
      resolve(request.result);
    };
    request.onerror = () => reject(request.error);
  });
  return database;
}

async function get(name, act) {
  const store = (await open()).transaction(name, "readonly").objectStore(name);
  return new Promise((resolve, reject) => {
    const request = act(store);
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

export const read = (id) => get(STORE, (store) => store.get(id));
export const all = () => get(STORE, (store) => store.getAll());
export const titles = () => get(TITLES, (store) => store.getAll());

/** Changes conversations and their titles together, or neither. */
async function change(act) {
  const transaction = (await open()).transaction([STORE, TITLES], "readwrite");
  return new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve();
    transaction.onerror = transaction.onabort = () => reject(transaction.error);
    act(transaction.objectStore(STORE), transaction.objectStore(TITLES));
  });
}

/** Keeps a conversation. What another tab has added to it meanwhile stays, and is taken over here. */
export const save = (conversation) => change((store, titles) => {
  store.get(conversation.id).onsuccess = ({ target }) => {
    if (target.result) union(conversation, target.result);
    store.put(conversation);
    titles.put(titleOf(conversation));
  };
});

export const remove = (id) => change((store, titles) => {
  store.delete(id);
  titles.delete(id);
});

function union(own, other) {
  const more = (place, others) => place.children.push(...others.children.filter((id) => !place.children.includes(id)));
  for (const [id, node] of Object.entries(other.nodes)) {
    if (!own.nodes[id]) own.nodes[id] = node;
    else if (!own.nodes[id].done && node.done) Object.assign(own.nodes[id], { runs: node.runs, done: true, error: node.error });
  }
  more(own.root, other.root);
  for (const [id, node] of Object.entries(other.nodes)) more(own.nodes[id], node);
}

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
