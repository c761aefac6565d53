// The server's API.
import { word } from "./words.js";

export class ApiError extends Error {}

async function failure(response) {
  if (response.status === 401) location.reload();
  try {
    return new ApiError((await response.json()).error.message);
  } catch {
    return new ApiError(`${response.status} ${response.statusText}`);
  }
}

async function reached(path, options) {
  try {
    return await fetch(path, options);
  } catch (error) {
    throw error.name === "AbortError" ? error : new ApiError(word("offline"));
  }
}

export async function call(path, { method = "GET", body, signal } = {}) {
  const response = await reached(path, {
    method, signal, headers: body ? { "content-type": "application/json" } : {},
    body: body ? JSON.stringify(body) : undefined,
  });
  if (!response.ok) throw await failure(response);
  return response.status === 204 ? null : response.json();
}

// The events of a stream, each as what its data holds.
export async function* stream(path, { body, signal } = {}) {
  const response = await reached(path, {
    method: body ? "POST" : "GET", signal,
    headers: body ? { "content-type": "application/json" } : {},
    body: body ? JSON.stringify(body) : undefined,
  });
  if (!response.ok) throw await failure(response);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      held += value;
      const events = held.split("\n\n");
      held = events.pop();
      for (const event of events) {
        const data = event.split("\n").filter((line) => line.startsWith("data: "))
          .map((line) => line.slice(6)).join("\n");
        if (!data || data === "[DONE]") continue;
        const told = JSON.parse(data);
        if (told.error?.message) throw new ApiError(told.error.message);
        yield told;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

// fetch does not tell how much of a file has been sent; XMLHttpRequest does.
export function upload(collection, file, ocr, onProgress) {
  const request = new XMLHttpRequest();
  const sent = new Promise((resolve, reject) => {
    request.upload.onprogress = (event) => onProgress(event.loaded / event.total);
    request.onerror = () => reject(new ApiError(word("offline")));
    request.onabort = () => reject(new DOMException("", "AbortError"));
    request.onload = () => {
      let told = null;
      try { told = JSON.parse(request.responseText); } catch { /* told below */ }
      if (request.status === 202) resolve(told);
      else reject(new ApiError(told?.error?.message ?? `${request.status}`));
    };
  });
  request.open("PUT", `${at(collection)}/files/${encodeURIComponent(file.name)}?ocr=${ocr}`);
  request.send(file);
  return { sent, abort: () => request.abort() };
}

export const at = (collection) => `/api/collections/${encodeURIComponent(collection)}`;
