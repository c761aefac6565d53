// Every word of the page, in both languages.
const WORDS = {
  en: {
    skip: "Skip to the question", menu: "Chats and documents", side: "Chats and documents",
    settings: "Settings", newChat: "New chat", history: "Chats", documents: "Documents",
    collection: "Collection", newCollection: "New collection",
    deleteCollection: "Delete this collection", drop: "Drop files here, or press to choose",
    conversation: "Conversation", grounded: "Answer from documents",
    hint: "Enter sends, Shift+Enter is a new line, Esc stops", question: "Ask a question",
    send: "Send", stop: "Stop", source: "Source", close: "Close", previousPage: "Previous page",
    nextPage: "Next page", original: "Save the file", language: "Language", theme: "Theme",
    themeAuto: "As the system", themeLight: "Light", themeDark: "Dark",
    temperature: "Temperature", maxTokens: "Longest answer, tokens",
    ocr: "Read pictures in uploads (OCR)", logOut: "Log out", remove: "Delete",
    sources: "Sources", noSource: "No passage supports this answer; do not rely on it.",
    doubtful: "Not held by its sources:", stopped: "(stopped)",
    cut: "(cut at the longest length; see settings)", demo: "demonstration model",
    noModel: "no model: documents can only be searched", main: "Main",
    pageOf: (n, all) => `Page ${n} of ${all}`, nPassages: (n) => (n === 1 ? "1 passage" : `${n} passages`),
    sure: (name) => `Delete “${name}”? This cannot be undone.`,
    sureLogOut: "Log out? Your chats are removed from this browser.",
    collectionName: "Name of the new collection (letters, digits, - and .):",
    welcome: "Ask about your documents. Drop files on the left; nothing leaves this server.",
    offline: "The server cannot be reached.", waiting: "waiting", running: "reading",
    done: "done", failed: "failed", halted: "stopped", uploading: "uploading",
    user: "You", assistant: "Answer", tooLarge: "is too large", computed: "from cache",
  },
  zh: {
    skip: "跳到提问框", menu: "对话与文档", side: "对话与文档",
    settings: "设置", newChat: "新对话", history: "对话", documents: "文档",
    collection: "文档集", newCollection: "新建文档集",
    deleteCollection: "删除此文档集", drop: "将文件拖到这里，或点击选择",
    conversation: "对话内容", grounded: "依据文档回答",
    hint: "回车发送，Shift+回车换行，Esc 停止", question: "请输入问题",
    send: "发送", stop: "停止", source: "引用", close: "关闭", previousPage: "上一页",
    nextPage: "下一页", original: "保存原文件", language: "语言", theme: "外观",
    themeAuto: "跟随系统", themeLight: "浅色", themeDark: "深色",
    temperature: "温度", maxTokens: "回答最长（词元）",
    ocr: "识别上传文件中的图片（OCR）", logOut: "退出登录", remove: "删除",
    sources: "引用", noSource: "没有段落支持这个回答，请勿采信。",
    doubtful: "引用中没有依据：", stopped: "（已停止）",
    cut: "（已达最长长度，可在设置中调整）", demo: "演示模型",
    noModel: "没有模型，只能检索文档", main: "默认",
    pageOf: (n, all) => `第 ${n} 页，共 ${all} 页`, nPassages: (n) => `${n} 段`,
    sure: (name) => `确定删除“${name}”吗？此操作无法撤销。`,
    sureLogOut: "确定退出登录吗？本浏览器中的对话将被删除。",
    collectionName: "新文档集的名称（字母、数字、- 和 .）：",
    welcome: "向您的文档提问。将文件拖到左侧；内容不会离开本服务器。",
    offline: "无法连接服务器。", waiting: "等待中", running: "读取中",
    done: "完成", failed: "失败", halted: "已停止", uploading: "上传中",
    user: "您", assistant: "回答", tooLarge: "太大", computed: "来自缓存",
  },
};

export const system = () => (navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en");
let language = system();

export function word(name, ...values) {
  const found = WORDS[language][name];
  return typeof found === "function" ? found(...values) : found;
}

export function speak(wanted) {
  language = wanted || system();
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const node of document.querySelectorAll("[data-words]")) {
    node.textContent = word(node.dataset.words);
  }
  for (const node of document.querySelectorAll("[data-label]")) {
    node.setAttribute("aria-label", word(node.dataset.label));
    if (node.tagName === "BUTTON") node.title = word(node.dataset.label);
  }
  for (const node of document.querySelectorAll("[data-placeholder]")) {
    node.placeholder = word(node.dataset.placeholder);
  }
}
