// Conversations, kept in this browser.
const KEY = "mixtral_rag.chats";
const MOST = 100;

let chats = [];
try { chats = JSON.parse(localStorage.getItem(KEY) ?? "[]"); } catch { /* damaged: begin anew */ }

export const all = () => chats;

let isOver = false; // logged out: what another tab still holds must not come back

export function save() {
  if (isOver) return;
  chats = chats.filter((chat) => chat.turns.length).slice(0, MOST);
  for (;;) {
    try {
      localStorage.setItem(KEY, JSON.stringify(chats));
      return;
    } catch { // full: the oldest goes
      if (chats.length < 2) return;
      chats.pop();
    }
  }
}

export function touch(chat) {
  chats = [chat, ...chats.filter((other) => other !== chat)];
  save();
}

export function remove(chat) {
  chats = chats.filter((other) => other !== chat);
  save();
}

export function clear() {
  isOver = true;
  chats = [];
  localStorage.removeItem(KEY);
}

// Call `done` when another tab has logged out.
export function whenCleared(done) {
  window.addEventListener("storage", (event) => {
    if (event.key !== KEY || event.newValue !== null) return;
    clear();
    done();
  });
}

// A turn: { question, text, citations, claims, found, collection, state }
export const create = () => ({ id: crypto.randomUUID?.() ?? String(Date.now()), turns: [] });

export const titleOf = (chat) => chat.turns[0]?.question.slice(0, 60) ?? "";
