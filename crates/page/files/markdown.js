// A small Markdown: nodes are built, nothing is read as HTML, images are not loaded.
import { make } from "./trace.js";

const INLINE = /(`+)([^`]|[^`][\s\S]*?[^`])\1(?!`)|\*\*([^\s*](?:[\s\S]*?[^\s*])?)\*\*|\*([^\s*](?:[^*]*?[^\s*])?)\*|~~([^~]+)~~|(!?)\[([^\]\n]{0,1000})\]\(\s*([^\s)]{1,2000})[^)\n]*\)|(https?:\/\/[^\s<>()]{1,2000})/;

function link(url, ...children) {
  let address;
  try {
    address = new URL(url, "relative:");
  } catch {
    address = null;
  }
  // A link leads to another site, or is text.
  if (!address || !["http:", "https:", "mailto:"].includes(address.protocol)) return make("span", {}, ...children);
  return make("a", { href: address.href, rel: "noopener noreferrer", target: "_blank" }, ...children);
}

function inline(text, depth = 0) {
  const nodes = [];
  while (text) {
    const found = depth < 8 ? INLINE.exec(text) : null;
    if (!found) break;
    if (found.index) nodes.push(text.slice(0, found.index));
    const [whole, , code, strong, weak, gone, image, label, target, bare] = found;
    if (code !== undefined) nodes.push(make("code", {}, code));
    else if (strong !== undefined) nodes.push(make("strong", {}, ...inline(strong, depth + 1)));
    else if (weak !== undefined) nodes.push(make("em", {}, ...inline(weak, depth + 1)));
    else if (gone !== undefined) nodes.push(make("del", {}, ...inline(gone, depth + 1)));
    else if (bare !== undefined) nodes.push(link(bare, bare));
    else nodes.push(image ? link(target, "[image: " + (label || target) + "]") : link(target, ...inline(label, depth + 1)));
    text = text.slice(found.index + whole.length);
  }
  if (text) nodes.push(text);
  return nodes;
}

/** Texts that stand apart: fenced code is one, however many empty lines it has. */
function blocks(text) {
  const all = [];
  let lines = [];
  let fence = null;
  const end = () => {
    if (lines.length) all.push(lines.join("\n"));
    lines = [];
  };
  for (const line of text.split("\n")) {
    const mark = /^ {0,3}(`{3,}|~{3,})/.exec(line)?.[1];
    if (fence) {
      lines.push(line);
      if (mark && mark.startsWith(fence) && line.trim() === mark) {
        fence = null;
        end();
      }
    } else if (mark) {
      end();
      fence = mark;
      lines.push(line);
    } else if (!line.trim()) end();
    else if (/^#{1,6} /.test(line) || /^ {0,3}(\*{3,}|-{3,}|_{3,})\s*$/.test(line)) {
      end();
      lines.push(line);
      end();
    } else lines.push(line);
  }
  end();
  return all;
}

function code(text) {
  const lines = text.split("\n");
  const mark = lines[0].trim();
  const fence = /^(`+|~+)/.exec(mark)[1];
  const isClosed = lines.length > 1 && lines.at(-1).trim() === fence;
  const body = lines.slice(1, isClosed ? -1 : undefined).join("\n");
  const copy = make("button", { type: "button", class: "copy", onclick: async () => {
    await navigator.clipboard.writeText(body);
    copy.textContent = "copied";
    setTimeout(() => { copy.textContent = "copy"; }, 1500);
  } }, "copy");
  return make("div", { class: "code" },
    make("div", { class: "code-head" }, make("span", {}, mark.slice(fence.length).trim().split(/\s/)[0]), copy),
    make("pre", { tabIndex: 0 }, make("code", {}, body)));
}

const ITEM = /^(\s{0,12})([-*+]|\d{1,9}[.)])\s+(.*)$/;

function list(lines, depth) {
  const first = ITEM.exec(lines[0]);
  const isOrdered = /\d/.test(first[2]);
  const node = make(isOrdered ? "ol" : "ul", isOrdered ? { start: parseInt(first[2], 10) } : {});
  const indent = first[1].length;
  let own = [];
  let inner = [];
  const end = () => {
    if (!own.length) return;
    const item = make("li", {}, ...inline(own.join("\n")));
    if (inner.length) item.append(ITEM.test(inner[0]) && depth < DEEPEST ? list(inner, depth + 1) : make("p", {}, ...inline(inner.join("\n"))));
    node.append(item);
    [own, inner] = [[], []];
  };
  for (const line of lines) {
    const found = ITEM.exec(line);
    if (found && found[1].length <= indent) {
      end();
      own = [found[3]];
    } else if (found || inner.length) inner.push(line);
    else own.push(line.trim());
  }
  end();
  return node;
}

const cells = (line) => line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());

function table(lines) {
  const row = (tag, line) => make("tr", {}, ...cells(line).slice(0, 64).map((cell) => make(tag, {}, ...inline(cell))));
  return make("div", { class: "wide", tabIndex: 0, role: "region", "aria-label": "Table" }, make("table", {}, make("thead", {}, row("th", lines[0])),
    make("tbody", {}, ...lines.slice(2).map((line) => row("td", line)))));
}

/** Blocks within blocks, and characters of one that is read as Markdown: what is larger is text. */
const DEEPEST = 8;
const LONGEST = 8000;

function block(text, depth = 0) {
  if (/^ {0,3}(`{3,}|~{3,})/.test(text)) return code(text);
  if (text.length > LONGEST || depth > DEEPEST) return make("p", {}, text);
  const lines = text.split("\n");
  const head = /^(#{1,6}) +(.*?)#*$/.exec(text);
  if (head) return make("h" + Math.min(6, head[1].length + 2), {}, ...inline(head[2]));
  if (/^ {0,3}(\*{3,}|-{3,}|_{3,})\s*$/.test(text)) return make("hr", {});
  if (lines.length > 1 && lines[0].includes("|") && /^[\s|:-]+$/.test(lines[1]) && lines[1].includes("-")) return table(lines);
  if (lines.every((line) => /^ {0,3}>/.test(line))) {
    return make("blockquote", {}, ...blocks(lines.map((line) => line.replace(/^ {0,3}> ?/, "")).join("\n")).map((inner) => block(inner, depth + 1)));
  }
  const item = lines.findIndex((line) => ITEM.test(line));
  if (item === 0) return list(lines, depth);
  if (item > 0) return make("div", {}, make("p", {}, ...inline(lines.slice(0, item).join("\n"))), list(lines.slice(item), depth));
  return make("p", {}, ...inline(text));
}

/** Text as Markdown. When it grows only what is new is drawn. */
export class Markdown {
  constructor() {
    this.node = make("div", { class: "markdown" });
    this.texts = [];
  }

  set(text) {
    const next = blocks(text);
    let same = 0;
    while (same < this.texts.length && this.texts[same] === next[same]) same += 1;
    while (this.node.childNodes.length > same) this.node.lastChild.remove();
    next.slice(same).forEach((text) => this.node.append(block(text)));
    this.texts = next;
  }
}
