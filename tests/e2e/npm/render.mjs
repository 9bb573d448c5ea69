// Render markdown as chat apps do: a JSON array of texts on stdin, an array of HTML by app on stdout.

import { readFileSync } from "node:fs";
import { marked } from "marked";
import { createElement } from "react";
import { renderToStaticMarkup } from "react-dom/server";
import ReactMarkdown from "react-markdown";
import rehypeHighlight from "rehype-highlight";
import rehypeKatex from "rehype-katex";
import remarkBreaks from "remark-breaks";
import remarkGfm from "remark-gfm";
import remarkMath from "remark-math";

// Open WebUI's rules beside GFM: [5] is a reference to its own sources, one tilde is no strikethrough
const citation = {
  name: "citation",
  level: "inline",
  start: (text) => text.search(/\[\d/),
  tokenizer(text) {
    const raw = /^(\[\d+(, *\d+)*\])+/.exec(text)?.[0];
    return raw && { type: "citation", raw };
  },
  renderer: (token) => token.raw,
};
const tokenizer = {
  del(text) {
    return /^~[^~]/.test(text) ? undefined : false;
  },
};
marked.use({ extensions: [citation], tokenizer });

const openWebUI = (text) => marked.parse(text, { mangle: false, headerIds: false });

const nextChat = (text) =>
  renderToStaticMarkup(
    createElement(ReactMarkdown, {
      remarkPlugins: [remarkMath, remarkGfm, remarkBreaks],
      rehypePlugins: [rehypeKatex, [rehypeHighlight, { detect: false, ignoreMissing: true }]],
      children: text,
    }),
  );

const texts = JSON.parse(readFileSync(0, "utf8"));
console.log(JSON.stringify(texts.map((text) => [openWebUI(text), nextChat(text)])));
