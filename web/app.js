// The chat page. Talks to /v1/chat/completions as any client does and keeps the conversation in memory.
// Everything a model or user wrote reaches the document as text nodes, never as markup.
"use strict";

const $ = id => document.getElementById(id);
const page = { model: $("model"), fresh: $("new"), system: $("system"), log: $("log"), hint: $("hint"), form: $("form"),
               input: $("input"), send: $("send"), stop: $("stop"), status: $("status") };

let messages = [];      // {role, content, reasoning_content} of the conversation, without the system prompt
let running = null;     // AbortController of the answer that is being written

// ---- showing ------------------------------------------------------------------------------------

function element(tag, className, text) {
  const e = document.createElement(tag);
  if (className) e.className = className;
  if (text !== undefined) e.textContent = text;
  return e;
}

// Splits text at lines that open and close a code fence: [{code: bool, name, text}].
function splitFences(text) {
  const parts = [];
  let lines = [], fence = null, name = "";
  const push = code => {
    const joined = lines.join("\n");
    if (code || joined.trim() !== "") parts.push({ code, name, text: code ? joined : joined.replace(/^\n+|\n+$/g, "") });
    lines = [];
  };
  for (const line of text.split("\n")) {
    const mark = /^ {0,3}(`{3,}|~{3,})\s*([^`]*)$/.exec(line);
    if (!fence && mark) {
      push(false);
      fence = mark[1];
      name = mark[2].trim();
    } else if (fence && mark && mark[2] === "" && mark[1][0] === fence[0] && mark[1].length >= fence.length) {
      push(true);
      fence = null;
      name = "";
    } else {
      lines.push(line);
    }
  }
  push(fence !== null);
  return parts;
}

function codeBlock(part) {
  const figure = element("figure"), caption = element("figcaption"), pre = element("pre");
  const copy = element("button", "small", "Copy");
  copy.type = "button";
  copy.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(part.text);
      copy.textContent = "Copied";
    } catch {
      copy.textContent = "Not allowed";
    }
  });
  caption.append(element("span", "", part.name || "text"), copy);
  pre.tabIndex = 0;
  pre.append(element("code", "", part.text));
  figure.append(caption, pre);
  return figure;
}

function showText(body, text) {
  body.replaceChildren(...splitFences(text).map(part => part.code ? codeBlock(part) : element("p", "text", part.text)));
}

function addMessage(role, text) {
  const article = element("article", role), body = element("div", "body");
  page.hint.hidden = true;
  article.append(element("h2", "", role === "user" ? "You" : "Model"), body);
  showText(body, text);
  page.log.append(article);
  page.log.scrollTop = page.log.scrollHeight;
  return { article, body };
}

// The thinking before an answer: open while it is all there is, then a line that can be opened again.
function showThinking(article, body, text, over) {
  if (!text) return;
  let box = article.querySelector("details.thinking");
  if (!box) {
    box = element("details", "thinking");
    box.append(element("summary", "", "Thinking"), element("p", "text", ""));
    box.open = true;
    article.insertBefore(box, body);
  }
  box.lastChild.textContent = text;
  if (over && !box.dataset.over) {
    box.dataset.over = "yes";
    box.open = false;
  }
}

function atBottom() {
  return page.log.scrollHeight - page.log.scrollTop - page.log.clientHeight < 40;
}

function setRunning(controller) {
  running = controller;
  page.send.hidden = controller !== null;
  page.stop.hidden = controller === null;
}

function fitInput() {
  page.input.style.height = "auto";
  page.input.style.height = `${page.input.scrollHeight + 2}px`;
}

// ---- the wire -----------------------------------------------------------------------------------

// The words of an error reply, whatever came.
async function replyError(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `The service answered with status ${response.status}.`;
  }
}

// Yields the data of each server-sent event.
async function* events(response) {
  const reader = response.body.getReader(), decoder = new TextDecoder();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    rest += decoder.decode(value, { stream: true });
    let end;
    while ((end = rest.indexOf("\n\n")) >= 0) {
      const event = rest.slice(0, end);
      rest = rest.slice(end + 2);
      const data = event.split("\n").filter(line => line.startsWith("data:")).map(line => line.slice(5).trimStart());
      if (data.length) yield data.join("\n");
    }
  }
}

// Streams one answer; onThought and onText get each piece. Returns the finish reason.
async function ask(conversation, signal, onThought, onText) {
  const response = await fetch("/v1/chat/completions", {
    method: "POST", signal, headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ messages: conversation, stream: true }),
  });
  if (!response.ok) throw new Error(await replyError(response));
  let finish = null;
  for await (const data of events(response)) {
    if (data === "[DONE]") return finish;
    const object = JSON.parse(data);
    if (object.error) throw new Error(object.error.message);
    const choice = object.choices[0];
    if (choice?.delta?.reasoning_content) onThought(choice.delta.reasoning_content);
    if (choice?.delta?.content) onText(choice.delta.content);
    if (choice?.finish_reason) finish = choice.finish_reason;
  }
  throw new Error("The answer broke off: the connection was closed.");
}

// ---- conversation -------------------------------------------------------------------------------

async function send(text) {
  const controller = new AbortController(), mine = messages;
  const system = page.system.value.trim();
  mine.push({ role: "user", content: text });
  addMessage("user", text);
  const { article, body } = addMessage("assistant", "");
  let thought = "", answer = "", drawn = false, note = null, failed = false;
  const draw = () => {
    const follow = atBottom();
    drawn = false;
    showThinking(article, body, thought, answer !== "");
    showText(body, answer);
    if (follow) page.log.scrollTop = page.log.scrollHeight;
  };
  const drawSoon = () => {
    if (drawn) return;
    drawn = true;
    requestAnimationFrame(draw);
  };
  article.classList.add("waiting");
  setRunning(controller);
  try {
    const conversation = system ? [{ role: "system", content: system }, ...mine] : mine;
    const finish = await ask(conversation, controller.signal, piece => {
      thought += piece;
      drawSoon();
    }, piece => {
      answer += piece;
      drawSoon();
    });
    if (!answer && thought) note = "The model thought and gave no answer.";
    if (finish === "length") note = "The answer is cut: the conversation fills the model's context.";
  } catch (error) {
    failed = !controller.signal.aborted;
    note = failed ? error instanceof TypeError ? "The service cannot be reached." : error.message : "Stopped.";
  }
  if (running === controller) setRunning(null);
  article.classList.remove("waiting");
  draw();
  // A question without any answer is taken back, so that the next one does not follow it directly.
  if (answer) mine.push({ role: "assistant", content: answer, ...(thought && { reasoning_content: thought }) });
  else mine.pop();
  if (!answer && failed && mine === messages && page.input.value === "") {
    page.input.value = text;
    fitInput();
  }
  const follow = atBottom();
  if (note) {
    const line = element("p", failed ? "error" : "note", note);
    if (failed) line.setAttribute("role", "alert");
    article.append(line);
  }
  if (follow) page.log.scrollTop = page.log.scrollHeight;
  if (mine === messages) page.status.textContent = failed ? "" : note || "The answer is complete.";
  page.input.focus();
}

page.form.addEventListener("submit", event => {
  event.preventDefault();
  const text = page.input.value.trim();
  if (running || text === "") return;
  page.input.value = "";
  fitInput();
  page.status.textContent = "";
  send(text);
});

page.input.addEventListener("keydown", event => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  page.form.requestSubmit();
});

page.input.addEventListener("input", fitInput);

page.stop.addEventListener("click", () => running?.abort());

page.fresh.addEventListener("click", () => {
  running?.abort();
  setRunning(null);
  messages = [];
  page.log.replaceChildren(page.hint);
  page.hint.hidden = false;
  page.status.textContent = "";
  page.input.focus();
});

async function showModel() {
  try {
    const response = await fetch("/v1/models");
    if (!response.ok) throw new Error(await replyError(response));
    page.model.textContent = (await response.json()).data[0].id;
  } catch {
    page.model.textContent = "The service cannot be reached.";
  }
}

showModel();
