// The conversation: asking, streaming, stopping; and what holds the page together.
import { ApiError, call, stream } from "./api.js";
import * as chats from "./chats.js";
import * as documents from "./documents.js";
import { $, make, marked, notice } from "./dom.js";
import * as settings from "./settings.js";
import * as viewer from "./viewer.js";
import { word } from "./words.js";

const { setting } = settings;
let chat = chats.create();
let running = null; // AbortController of the answer under way
let info = {};

function showChats() {
  $("chats").replaceChildren(...chats.all().map((one) => {
    const open = make("button", { className: "plain name", textContent: chats.titleOf(one) });
    open.addEventListener("click", () => choose(one));
    const remove = make("button", { className: "plain", textContent: "✕", title: word("remove") });
    remove.setAttribute("aria-label", `${word("remove")} ${chats.titleOf(one)}`);
    remove.addEventListener("click", () => {
      chats.remove(one);
      if (one === chat) choose(chats.create());
      else showChats();
    });
    return make("li", { className: one === chat ? "now" : "" }, open, remove);
  }));
}

function choose(one) {
  running?.abort();
  chat = one;
  document.body.classList.remove("with-menu");
  $("menu").setAttribute("aria-expanded", "false");
  showChats();
  showTurns();
  $("question").focus();
}

function showTurns() {
  const nodes = chat.turns.flatMap((turn) => [questionNode(turn), answerNode(turn)]);
  if (!nodes.length) nodes.push(make("p", { className: "empty", textContent: word("welcome") }));
  $("messages").replaceChildren(...nodes);
  $("messages").scrollTop = $("messages").scrollHeight;
}

function questionNode(turn) {
  const node = make("div", { className: "message user", textContent: turn.question });
  node.setAttribute("aria-label", word("user"));
  node.setAttribute("role", "article");
  return node;
}

function answerNode(turn) {
  const node = make("div", { className: "message assistant" });
  node.setAttribute("aria-label", word("assistant"));
  node.setAttribute("role", "article");
  fill(node, turn);
  return node;
}

function fill(node, turn) {
  const cited = new Map((turn.citations ?? []).map((c) => [c.number, c]));
  const cite = (number) => {
    const citation = cited.get(number);
    if (!citation) return `[${number}]`;
    const chip = make("button", { className: "cite", textContent: String(number) });
    chip.setAttribute("aria-label", `${word("source")} ${number}: ${citation.name}`);
    chip.addEventListener("click", () => viewer.open(turn.collection, citation));
    return chip;
  };
  node.classList.toggle("waiting", turn.state === "running" && !turn.text);
  node.replaceChildren(...marked(turn.text, cite));
  if (turn.state === "stopped") node.append(make("p", { textContent: word("stopped") }));
  if (turn.state === "length") node.append(make("p", { textContent: word("cut") }));
  if (turn.error) node.append(make("p", { className: "doubt", textContent: turn.error }));
  if (turn.state === "running" || !turn.citations) return;
  if (turn.citations.length) node.append(sources(turn));
  else if (turn.found) node.append(make("p", { className: "doubt", textContent: word("noSource") }));
  const doubtful = (turn.claims ?? []).filter((claim) => claim.problems.length);
  if (doubtful.length && turn.found) {
    node.append(make("div", { className: "doubt" }, word("doubtful"), make("ul", {},
      ...doubtful.map((c) => make("li", { textContent: `${c.text.trim()} (${c.problems.join("; ")})` })))));
  }
}

function sources(turn) {
  const rows = turn.citations.map((citation) => {
    const where = citation.where ? `, ${citation.where}` : "";
    const row = make("button", { className: "plain" }, `[${citation.number}] ${citation.name}${where}`,
      make("q", { textContent: citation.quote }));
    row.addEventListener("click", () => viewer.open(turn.collection, citation));
    return row;
  });
  const list = make("section", { className: "sources" }, make("h2", { textContent: word("sources") }), ...rows);
  list.setAttribute("aria-label", word("sources"));
  return list;
}

function request(turn) {
  const earlier = chat.turns.filter((other) => other !== turn && other.text && !other.error);
  const messages = earlier.flatMap((other) => [
    { role: "user", content: other.question }, { role: "assistant", content: other.text }]);
  const body = { messages: [...messages, { role: "user", content: turn.question }], stream: true };
  if (turn.collection) body.collection = turn.collection;
  else if (setting("temperature") != null) body.temperature = setting("temperature");
  if (!turn.collection && setting("maxTokens")) body.max_tokens = setting("maxTokens");
  return body;
}

async function ask(question) {
  const collection = $("grounded").checked ? documents.collection() : null;
  const turn = { question, text: "", collection, state: "running" };
  const asked = chat;
  chat.turns.push(turn);
  chats.touch(chat);
  showChats();
  showTurns();
  const node = $("messages").lastElementChild;
  const abort = running = new AbortController();
  busy(true);
  try {
    for await (const told of stream("/v1/chat/completions", { body: request(turn), signal: abort.signal })) {
      const [choice] = told.choices;
      turn.text += choice?.delta.content ?? "";
      if (told.citations) {
        Object.assign(turn, { citations: told.citations, claims: told.claims, found: told.found });
      }
      if (choice?.finish_reason) turn.state = choice.finish_reason;
      const isAtEnd = $("messages").scrollHeight - $("messages").scrollTop - $("messages").clientHeight < 80;
      fill(node, turn);
      if (isAtEnd) $("messages").scrollTop = $("messages").scrollHeight;
    }
    if (turn.state === "running") turn.state = "stopped";
  } catch (error) {
    turn.state = "stopped";
    if (error.name !== "AbortError") {
      turn.error = error instanceof ApiError ? error.message : String(error);
      if (!turn.text && !$("question").value) $("question").value = question;
    }
  }
  if (running === abort) {
    running = null;
    busy(false);
  }
  chats.touch(asked);
  fill(node, turn);
  showChats();
}

function busy(is) {
  $("send").hidden = is;
  $("stop").hidden = !is;
  $("messages").setAttribute("aria-busy", String(is));
}

function showInfo() {
  const kind = info.is_demo ? ` (${word("demo")})` : "";
  $("model").textContent = info.model ? `${info.model}${kind}` : word("noModel");
  $("about").textContent = `mixtral_rag ${info.version}`;
  $("log-out").hidden = !info.has_key;
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const question = $("question").value.trim();
  if (!question || running) return;
  $("question").value = "";
  ask(question);
});
$("question").addEventListener("keydown", (event) => {
  // An input method uses Enter to choose characters.
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("ask").requestSubmit();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || $("settings").open) return;
  if (running) running.abort();
  else if (!$("viewer").hidden) viewer.close();
});
$("stop").addEventListener("click", () => running?.abort());
$("new-chat").addEventListener("click", () => choose(chats.create()));
$("menu").addEventListener("click", () => {
  const isOpen = document.body.classList.toggle("with-menu");
  $("menu").setAttribute("aria-expanded", String(isOpen));
});
$("grounded").addEventListener("change", () => setting("grounded", $("grounded").checked));
$("log-out").addEventListener("click", async () => {
  if (chats.all().some((chat) => chat.turns.length) && !confirm(word("sureLogOut"))) return;
  running?.abort();
  const answer = await fetch("/logout", { method: "POST" }).catch(() => null);
  if (!answer || answer.status >= 500) return notice(word("offline"));
  chats.clear(); // the next user of this browser may be another
  location.reload();
});
chats.whenCleared(() => location.reload());

settings.apply();
settings.begin(() => { showInfo(); showChats(); showTurns(); documents.refresh().catch(() => {}); });
$("grounded").checked = setting("grounded") ?? true;
showChats();
showTurns();
try {
  info = await call("/api/info");
  showInfo();
  await documents.begin(info);
} catch (error) {
  notice(error.message);
}
