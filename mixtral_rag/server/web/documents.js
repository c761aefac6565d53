// Collections and documents: the list, uploads with their progress, deleting.
import { at, call, stream, upload } from "./api.js";
import { $, make, notice } from "./dom.js";
import { setting } from "./settings.js";
import { word } from "./words.js";

const AT_ONCE = 3;
let largest = Infinity;

export const collection = () => $("collection").value || "default";

export async function refresh(wanted = collection()) {
  const { collections } = await call("/api/collections");
  const names = collections.map((c) => c.name);
  if (!names.includes(wanted)) names.push(wanted); // made by its first upload
  $("collection").replaceChildren(...names.map((name) => make("option", {
    value: name, textContent: name === "default" ? word("main") : name, selected: name === wanted,
  })));
  $("delete-collection").disabled = wanted === "default";
  const isThere = collections.some((c) => c.name === wanted);
  const found = isThere ? (await call(`${at(wanted)}/documents`)).documents : [];
  $("documents").replaceChildren(...found.map((document) => row(wanted, document)));
}

function row(name, document) {
  const what = document.failure ?? word("nPassages", document.n_passages);
  const remove = make("button", { className: "plain", textContent: "✕", title: word("remove") });
  remove.setAttribute("aria-label", `${word("remove")} ${document.name}`);
  remove.addEventListener("click", async () => {
    if (!confirm(word("sure", document.name))) return;
    try {
      remove.disabled = true;
      await call(`${at(name)}/documents/${document.id}`, { method: "DELETE" });
    } catch (error) {
      notice(error.message);
    }
    await refresh();
  });
  return make("li", { className: document.failure ? "bad" : "", title: `${document.name}: ${what}` },
    make("span", { className: "name", textContent: document.name }),
    make("small", { textContent: document.failure ? "⚠" : what }), remove);
}

const watched = new Set();

async function watch(job) {
  if (watched.has(job)) return;
  watched.add(job);
  const bar = make("progress", { max: 1, value: 0, ariaLabel: word("running") });
  const name = make("span", { className: "name" });
  const end = make("button", { className: "plain", textContent: "✕", title: word("stop") });
  end.setAttribute("aria-label", word("stop"));
  end.addEventListener("click", () => call(`/api/jobs/${job}`, { method: "DELETE" })
    .catch((error) => notice(error.message)));
  const item = make("li", {}, name, bar, end);
  $("uploads").append(item);
  try {
    for await (const told of stream(`/api/jobs/${job}/events`)) {
      name.textContent = `${word(told.state === "stopped" ? "halted" : told.state)}: ${
        told.progress?.path ?? told.files.join(", ")}`;
      if (told.progress) bar.value = told.progress.done;
      else bar.removeAttribute("value");
      if (told.error) notice(told.error);
      for (const [file, why] of Object.entries(told.report?.failed ?? {})) notice(`${file}: ${why}`);
    }
  } catch (error) {
    notice(error.message);
  }
  item.remove();
  await refresh();
}

async function send(file) {
  if (file.size > largest) {
    notice(`${file.name} ${word("tooLarge")}`);
    return;
  }
  const bar = make("progress", { max: 1, value: 0 });
  bar.setAttribute("aria-label", `${word("uploading")} ${file.name}`);
  const end = make("button", { className: "plain", textContent: "✕", title: word("stop") });
  end.setAttribute("aria-label", `${word("stop")} ${file.name}`);
  const item = make("li", {}, make("span", { className: "name", textContent: file.name }), bar, end);
  $("uploads").append(item);
  try {
    const going = upload(collection(), file, setting("ocr") === true, (share) => { bar.value = share; });
    end.addEventListener("click", going.abort);
    watch((await going.sent).job);
  } catch (error) {
    if (error.name !== "AbortError") notice(`${file.name}: ${error.message}`);
  }
  item.remove();
}

export async function sendAll(files) {
  const left = [...files];
  await Promise.all(Array.from({ length: AT_ONCE }, async () => {
    while (left.length) await send(left.shift());
  }));
}

export async function begin(info) {
  largest = info.upload_bytes;
  await refresh(setting("collection") ?? "default");
  for (const job of (await call("/api/jobs")).jobs) {
    if (job.state === "waiting" || job.state === "running") watch(job.id);
  }
}

$("collection").addEventListener("change", () => {
  setting("collection", collection());
  refresh().catch((error) => notice(error.message));
});
$("new-collection").addEventListener("click", () => {
  const name = prompt(word("collectionName"))?.trim();
  if (name) refresh(name).then(() => setting("collection", name)).catch((e) => notice(e.message));
});
$("delete-collection").addEventListener("click", async () => {
  const name = collection();
  if (!confirm(word("sure", name))) return;
  try {
    await call(at(name), { method: "DELETE" });
  } catch (error) {
    notice(error.message);
  }
  setting("collection", "default");
  refresh("default").catch((error) => notice(error.message));
});
$("files").addEventListener("change", () => {
  sendAll($("files").files);
  $("files").value = "";
});
for (const name of ["dragenter", "dragover"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    document.body.classList.add("dragging");
  });
}
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dragging");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  sendAll(event.dataTransfer.files);
});
