// What the page can do beyond its form, which works without this script: preview and paste, answers without a new page,
// announcements, speech. All sentences come from the server: in the form's data attributes, or in the returned page.

const WAIT_IS_LONG_MS = 1000; // a longer wait is announced
const WAIT_AGAIN_MS = 10_000;
const TIMEOUT_MARGIN_S = 60; // beyond the server's own limits of upload and answer
const LANGUAGE = "en-US"; // the model reads English

const element = (id) => document.getElementById(id);
const [form, take, choose, question, result, details] = ["form", "take", "choose", "question", "result", "details"].map(element);
const say = form.dataset;

document.querySelectorAll("[data-js]").forEach((part) => (part.hidden = false));
hideFallbacks();

function hideFallbacks() {
  document.querySelectorAll("[data-no-js]").forEach((part) => (part.hidden = true));
}

// The photo. The two controls hold it, so that the form is sent as it would be without this script.

const chosenPhoto = () => take.files[0] ?? choose.files[0];
let lastControl = take; // where another photo is taken or chosen

for (const [control, other] of [[take, choose], [choose, take]]) {
  control.addEventListener("change", () => {
    if (control.files.length) other.value = "";
    lastControl = control;
    showPhoto();
  });
}

document.addEventListener("paste", (event) => {
  if (event.target === question && event.clipboardData.types.includes("text/plain")) return; // a cell of a table has both
  const photo = [...event.clipboardData.files].find((file) => file.type.startsWith("image/"));
  if (!photo) return;
  event.preventDefault();
  const files = new DataTransfer();
  files.items.add(photo);
  choose.files = files.files;
  take.value = "";
  showPhoto();
});

function showPhoto() {
  const photo = chosenPhoto();
  const preview = element("preview");
  URL.revokeObjectURL(preview.src);
  preview.hidden = true; // until it is loaded: some browsers cannot show HEIC, which the server may read
  preview.onload = () => (preview.hidden = false);
  preview.alt = photo ? `${say.photo} ${photo.name}` : "";
  if (photo) preview.src = URL.createObjectURL(photo);
  else preview.removeAttribute("src");
  element("photo-status").textContent = photo ? `${say.photo} ${photo.name}` : "";
  markInvalid(question.getAttribute("aria-invalid") ? "question" : "");
}

// Questions and answers.

let pending = null; // the request that is waited for: {photo, text, controller}
let announcing = 0; // timer of the next announcement
let answered = null; // the answer that is shown: {photo, text, lines}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const [photo, text] = [chosenPhoto(), question.value.trim()];
  if (photo && pending?.photo === photo && pending.text === text) {
    announce(say.waiting);
    return;
  }
  pending?.controller.abort();
  pending = null;
  clear();
  if (!photo) refuse(say.noPhoto, "photo");
  else if (photo.size > Number(say.maxPhotoBytes)) refuse(say.tooLarge, "photo");
  else if (!text) refuse(say.noQuestion, "question");
  else ask({ photo, text, controller: new AbortController() });
});

async function ask(request) {
  pending = request;
  const timers = [setTimeout(() => announce(say.waiting), WAIT_IS_LONG_MS), setInterval(() => announce(say.waiting), WAIT_AGAIN_MS)];
  timers.push(setTimeout(() => request.controller.abort(), 1000 * (Number(say.timeoutS) + TIMEOUT_MARGIN_S)));
  let page = null;
  let problem = say.lost;
  try {
    const body = new FormData(form);
    const response = await fetch(form.action, { method: "POST", body, signal: request.controller.signal });
    page = new DOMParser().parseFromString(await response.text(), "text/html");
    if (!page.getElementById("result")) [page, problem] = [null, say.unexpected];
  } catch {} // no connection, or the photo's file is gone
  timers.forEach(clearTimeout);
  if (pending !== request) return; // another question was asked meanwhile
  pending = null;
  if (page) show(page, request);
  else refuse(problem, "");
}

function show(page, request) {
  const shown = page.getElementById("result");
  const { outcome, field, needsPhoto } = shown.dataset;
  details.replaceChildren(...page.getElementById("details").childNodes);
  element("demo").replaceChildren(...page.getElementById("demo").childNodes);
  hideFallbacks();
  const lines = [...shown.children].map((line) => line.textContent);
  if (outcome === "error") refuse(lines, field);
  else {
    announce(lines, outcome);
    answered = { ...request, lines };
    element("next").hidden = false;
    element("another-photo").className = needsPhoto === undefined ? "" : "main";
    if (speaks()) speak(lines.join(" "));
  }
}

// Make room for another answer; the one that is shown joins the earlier ones.
function clear() {
  markInvalid("");
  announce([]);
  details.replaceChildren();
  window.speechSynthesis?.cancel();
  if (!answered) return;
  const entry = document.createElement("li");
  entry.textContent = `${answered.text} ${answered.lines[0]} (${answered.photo.name})`;
  element("earlier").prepend(entry);
  element("visit").hidden = false;
  answered = null;
}

// Replace what the live region says. It is emptied first: a sentence that stands there already would not be announced.
function announce(lines, outcome = "empty") {
  clearTimeout(announcing);
  result.replaceChildren();
  announcing = setTimeout(() => {
    result.dataset.outcome = outcome;
    result.replaceChildren(...[lines].flat().map((text, index) => {
      const line = document.createElement("p");
      line.className = index ? "" : "sentence";
      line.textContent = text;
      return line;
    }));
    if (lines.length) result.scrollIntoView({ block: "nearest" });
  }, 50);
}

// Say what is wrong and what to do, with the focus on the control where it is done.
function refuse(lines, field) {
  announce(lines, "error");
  markInvalid(field);
  if (field) (field === "photo" ? lastControl : question).focus();
}

function markInvalid(field) {
  for (const control of [take, choose, question]) {
    const invalid = control.name === field;
    if (invalid) control.setAttribute("aria-invalid", "true");
    else control.removeAttribute("aria-invalid");
    control.setAttribute("aria-describedby", `${control.name}-hint${invalid ? " result" : ""}`); // the reason
  }
}

element("another-question").addEventListener("click", () => {
  question.focus();
  question.select();
});

element("another-photo").addEventListener("click", () => {
  lastControl.focus();
  lastControl.click();
});

// Answers aloud: off until it is asked for, because a screen reader speaks already. Only voices of this device: others send
// the text to a third party.

const speaker = element("speak");
const localVoice = () => window.speechSynthesis?.getVoices().find((voice) => voice.localService && voice.lang.startsWith("en"));
const isPressed = (button) => button.getAttribute("aria-pressed") === "true";
const press = (button, pressed) => button.setAttribute("aria-pressed", String(pressed)); // Firefox lacked .ariaPressed
const speaks = () => !speaker.hidden && isPressed(speaker);

function speak(text) {
  const utterance = new SpeechSynthesisUtterance(text);
  utterance.voice = localVoice();
  speechSynthesis.cancel();
  speechSynthesis.speak(utterance);
}

function offerSpeech() {
  speaker.hidden = !localVoice();
}

function remembered(value) {
  try {
    if (value !== undefined) localStorage.setItem("speak", value);
    return localStorage.getItem("speak");
  } catch {
    return null; // the browser stores nothing
  }
}

press(speaker, remembered() === "true");
speaker.addEventListener("click", () => {
  press(speaker, !speaks());
  remembered(String(isPressed(speaker)));
  if (!speaks()) speechSynthesis.cancel();
  else if (answered) speak(answered.lines.join(" "));
});
window.speechSynthesis?.addEventListener?.("voiceschanged", offerSpeech); // browsers load their voices late
offerSpeech();

// Dictation: only where the browser recognises speech on this device; elsewhere sound would go to a third party.

const Recognition = window.SpeechRecognition;

async function offerDictation() {
  if (!Recognition?.available || !("processLocally" in Recognition.prototype)) return;
  const found = await Recognition.available({ langs: [LANGUAGE], processLocally: true }).catch(() => "unavailable");
  if (found !== "available") return; // "downloadable" would fetch a model from a third party
  element("dictation-hint").hidden = true;
  const button = element("dictate");
  button.hidden = false;
  const recognition = new Recognition();
  recognition.lang = LANGUAGE;
  recognition.processLocally = true;
  recognition.addEventListener("end", () => press(button, false));
  recognition.addEventListener("error", (event) => {
    if (event.error === "aborted") return; // by the person
    refuse(event.error === "not-allowed" ? say.noMicrophone : say.notHeard, "question");
  });
  recognition.addEventListener("result", (event) => {
    question.value = event.results[0][0].transcript;
    question.focus(); // a screen reader reads what was heard
  });
  button.addEventListener("click", () => {
    if (isPressed(button)) recognition.stop();
    else recognition.start();
    press(button, true); // until it ends: a second start would fail
  });
}

offerDictation();
