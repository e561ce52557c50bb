// The page in the browser. Texts from the table are only ever set as text, never as markup.

const at = (id) => document.getElementById(id);
const settings = await (await fetch("settings")).json();
let latestSearch = 0;
let latestChoice = 0;
let chosen = null;
// Runs the search that is shown with other filters.
let again = null;

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function say(text, failed = false) {
  at("status").textContent = text;
  at("status").classList.toggle("failed", failed);
}

async function post(path, body, type = "application/json") {
  try {
    const response = await fetch(path, { method: "POST", headers: { "content-type": type }, body });
    return await response.json();
  } catch {
    return { message: "The server does not answer; is the program still running?" };
  }
}

// Put a picture into a frame, or the reason why there is none.
async function show(frame, path, description) {
  let shown;
  try {
    const response = await fetch(path);
    if (response.ok) {
      const address = URL.createObjectURL(await response.blob());
      shown = make("img", { src: address, alt: description });
      shown.onload = () => URL.revokeObjectURL(address);
    } else {
      shown = lost((await response.json()).message);
    }
  } catch {
    shown = lost("The server does not answer.");
  }
  frame.replaceChildren(shown);
}

function lost(reason) {
  return make("span", { className: "lost" }, "No picture", make("br"), reason);
}

function chosenFilters() {
  const where = {};
  for (const control of at("filters").querySelectorAll("input, select")) {
    if (control.value.trim()) where[control.name] = control.value.trim();
  }
  return where;
}

// Run a search and show its results, unless a later search has begun.
async function search(heading, ask, picture = null) {
  const order = ++latestSearch;
  again = () => search(heading, ask, picture);
  say("Searching…");
  at("results").classList.add("old");
  at("asked").hidden = true;
  const found = await ask();
  if (order !== latestSearch) return;
  at("results").classList.remove("old");
  at("results").replaceChildren();
  if (found.message !== undefined) return say(found.message, true);
  const count = found.results.length;
  say(count ? `${count} nearest ${count === 1 ? "picture" : "pictures"} ${heading}`
    : "No picture has these values; choose others.");
  if (picture) {
    at("asked").replaceChildren(picture());
    at("asked").hidden = false;
  }
  at("results").append(...found.results.map(card));
}

function card(result) {
  const frame = make("span", { className: "frame" });
  const title = result.title.split("/").pop();
  const description = result.caption ?? title;
  const values = [["score", result.score.toFixed(3)], ...Object.entries(result.values)];
  const lines = make("span", { className: "lines" },
    make("span", { className: "caption" }, description),
    make("span", { className: "values" }, ...values.map(([name, value]) => make("span", {}, `${name} ${value}`))));
  const button = make("button", { type: "button", className: "card" }, frame, lines);
  button.onclick = () => choose(result);
  show(frame, `thumbnail/${result.picture}`, description);
  return make("li", {}, button);
}

function choose(result) {
  const choice = ++latestChoice;
  chosen = result;
  at("chosen-caption").textContent = result.caption ?? "";
  at("chosen-caption").hidden = !result.caption;
  const rows = [["picture", result.title], ["score", result.score.toFixed(4)], ...Object.entries(result.values)];
  at("chosen-values").replaceChildren(
    ...rows.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
  at("answer").textContent = "";
  at("question").value = "";
  at("rated").replaceChildren();
  const frame = make("div");
  at("chosen-picture").replaceChildren(make("span", { className: "lost" }, "Loading…"));
  show(frame, `picture/${result.picture}`, result.caption ?? result.title).then(() => {
    if (choice === latestChoice) at("chosen-picture").replaceChildren(...frame.childNodes);
  });
  at("chosen").showModal();
}

function searchByText() {
  const text = at("text").value;
  search(`to “${text.trim()}”`, () => post("search", JSON.stringify({ text, where: chosenFilters() })));
}

function searchByFile(file) {
  const preview = () => {
    const address = URL.createObjectURL(file);
    const image = make("img", { src: address, alt: "" });
    image.onload = image.onerror = () => URL.revokeObjectURL(address);
    return make("span", {}, image);
  };
  search(`to ${file.name}`, async () => {
    if (file.size > settings.maxUploadBytes) {
      const limit = Math.floor(settings.maxUploadBytes / 2 ** 20);
      return { message: `${file.name} is larger than ${limit} MiB; choose a smaller file.` };
    }
    const where = encodeURIComponent(JSON.stringify(chosenFilters()));
    return post(`search-picture?where=${where}`, file, "application/octet-stream");
  }, preview);
}

function searchSimilar(result) {
  const preview = () => {
    const frame = make("span");
    show(frame, `thumbnail/${result.picture}`, "");
    return frame;
  };
  search(`to “${result.caption ?? result.title.split("/").pop()}”`,
    () => post("similar", JSON.stringify({ picture: result.picture, where: chosenFilters() })), preview);
}

function addFilter({ name, values }) {
  const control = values.length
    ? make("select", { name }, make("option", { value: "" }, "any"),
      ...values.map((value) => make("option", { value }, value)))
    : make("input", { name, placeholder: "any", size: 12 });
  control.onchange = () => again?.();
  at("filters").append(make("label", {}, name, control));
  at("filters").hidden = false;
}

at("name").textContent = settings.name;
settings.filters.forEach(addFilter);
at("text-line").hidden = !settings.takesText;
at("tags-form").hidden = !settings.takesText;
at("question-form").hidden = !settings.takesQuestions;
at("search").onsubmit = (event) => {
  event.preventDefault();
  if (settings.takesText) searchByText();
};
at("file").onchange = () => {
  const [file] = at("file").files;
  if (file) searchByFile(file);
  // So that choosing the same file again is a change.
  at("file").value = "";
};
for (const kind of ["dragenter", "dragover"]) at("drop").addEventListener(kind, () => at("drop").classList.add("over"));
for (const kind of ["dragleave", "drop"]) at("drop").addEventListener(kind, () => at("drop").classList.remove("over"));
at("close").onclick = () => at("chosen").close();
at("chosen").onclick = (event) => {
  if (event.target === at("chosen")) at("chosen").close();
};
at("similar").onclick = () => {
  at("chosen").close();
  searchSimilar(chosen);
  scrollTo({ top: 0 });
};
at("tags-form").onsubmit = async (event) => {
  event.preventDefault();
  const asked = latestChoice;
  const { tags, message } = await post("tags", JSON.stringify({ picture: chosen.picture, tags: at("tags").value }));
  if (asked !== latestChoice) return;
  at("rated").replaceChildren(...(tags
    ? tags.flatMap(({ tag, score }) => [make("dt", {}, tag), make("dd", {}, score.toFixed(3))])
    : [make("dd", {}, message)]));
};
at("question-form").onsubmit = async (event) => {
  event.preventDefault();
  const asked = latestChoice;
  at("answer").textContent = "Thinking…";
  const body = JSON.stringify({ picture: chosen.picture, question: at("question").value });
  const { answer, message } = await post("ask", body);
  if (asked === latestChoice) at("answer").textContent = answer ?? message;
};
if (settings.takesText) at("text").focus();
document.body.dataset.ready = "true";
