// The quiz: asks the cards that `measured build` made from the pages, and keeps what was answered in this browser.
// It runs on its own page, and at the end of a question's page, where it asks that page's cards.

import { TOPICS, button, element, evidence, markup, pageLink, pick, root, show, shuffled, status } from "./elements.js"
import { going, start as interview } from "./interview.js"
import { Store, StateError, read } from "./state.js"
import { Round, forecast, tonight, untilItSits } from "./round.js"
import { GuessError, draw, example, grade, guessed, off, question, solution } from "./estimate.js"

const AGAIN = 1
const GOOD = 3
const RATINGS = { 1: "Again", 2: "Hard", 3: "Good", 4: "Easy" }
const store = new Store()
let cards = []
let units = {} // dimension → unit → factor
let unitless = [] // dimensions whose unit the question says
let own = root.dataset.page ?? "" // the page whose cards alone are asked
let evening = 0 // minutes of a round that the address asks for
let round = null // null while nothing is asked
let current = null

function when(due, now) {
  const minutes = (due - now) / 60_000
  if (minutes < 60) return `in ${Math.max(1, Math.round(minutes))} min`
  return minutes < 24 * 60 ? `in ${Math.round(minutes / 60)} h` : `in ${Math.round(minutes / 60 / 24)} days`
}

// ---- The start --------------------------------------------------------------------------------------------

const topicsChosen = () => [...root.querySelectorAll("input[name=topic]:checked")].map((box) => box.value)

function chosen() {
  const topics = topicsChosen()
  return cards.filter((card) => topics.includes(card.topic))
}

function home(told = "") {
  round = current = null
  let state
  try {
    state = store.load()
  } catch (error) {
    if (!(error instanceof StateError)) throw error
    return show(
      false,
      element("h2", { tabIndex: -1 }, "What this browser keeps cannot be read"),
      element("p", {}, `${error.message}.`),
      element("p", {}, button("Save it as a file", save), " ", button("Start anew", reset)),
    )
  }
  if (own) return begin(new Round(cards.filter((card) => card.page === own)))
  if (evening) return begin(tonight(cards, evening, new Date()))
  const now = new Date()
  const rows = Object.entries(TOPICS).map(([topic, title]) => {
    const own = cards.filter((card) => card.topic === topic)
    const seen = own.filter((card) => state.due(card.id))
    const counts = [own.length, seen.length, seen.filter((card) => state.known(card.id)).length]
    const box = element("input", { type: "checkbox", name: "topic", value: topic, checked: true })
    const name = element("td", {}, element("label", {}, box, ` ${title}`))
    return element("tr", {}, name, ...counts.map((n) => element("td", {}, `${n}`)), element("td", {}, progress(...counts)))
  })
  const due = untilItSits(cards, state, now).queue.length
  const start = (make) => () => begin(make(chosen(), store.load(), new Date()))
  show(
    false,
    element("h2", { tabIndex: -1 }, "What for?"),
    element(
      "p",
      { className: "ma-quiz-buttons" },
      button(`Until it sits: ${due} cards now`, start(untilItSits), { className: "md-button md-button--primary" }),
      ...[20, 60, 120].map((minutes) => button(`Tonight: ${minutes} min`, start((some, _, from) => tonight(some, minutes, from)))),
      button("Mock interview: 20 min", () => interview(topicsChosen(), 20, home)),
    ),
    element(
      "table",
      { className: "ma-quiz-topics" },
      element("thead", {}, element("tr", {}, ...["Topic", "Cards", "Seen", "Known", "Progress"].map((name) => element("th", { scope: "col" }, name)))),
      element("tbody", {}, ...rows),
    ),
    bars(forecast(cards, state, now)),
    element(
      "p",
      { className: "ma-quiz-buttons" },
      button("Export", save),
      button("Import", load),
      button("Reset", () => confirm("Forget every answer in this browser?") && reset()),
    ),
  )
  status(told)
}

// The counts beside it as a bar; a screen reader has the counts.
function progress(all, seen, known) {
  const part = (count) => {
    const bar = element("span")
    bar.style.width = `${(count / Math.max(1, all)) * 100}%`
    return bar
  }
  return element("span", { className: "ma-quiz-progress", ariaHidden: "true" }, part(seen), part(known))
}

// Cards that come back on each of the next days, as bars with their counts.
function bars(counts) {
  const most = Math.max(1, ...counts)
  const days = counts.map((count, day) => {
    const bar = element("span", { className: "ma-quiz-bar" })
    bar.style.height = `${(count / most) * 3}em`
    return element("li", {}, element("span", {}, `${count}`), bar, element("span", {}, day ? `+${day}` : "today"))
  })
  return element("figure", {}, element("figcaption", {}, "Cards that come back, by day"), element("ol", { className: "ma-quiz-days" }, ...days))
}

function save() {
  const link = element("a", { href: URL.createObjectURL(new Blob([store.raw()], { type: "application/json" })), download: "measured-answers-quiz.json" })
  link.click()
  URL.revokeObjectURL(link.href)
}

function load() {
  const input = element("input", { type: "file", accept: ".json,application/json" })
  input.onchange = async () => {
    try {
      const other = read(await input.files[0].text(), input.files[0].name)
      const count = await store.change((state) => state.merge(other))
      home(`${count} answers are new.`)
    } catch (error) {
      if (!(error instanceof StateError)) throw error
      status(`${error.message}.`)
    }
  }
  input.click()
}

function reset() {
  store.reset()
  home("Every answer is forgotten.")
}

// ---- A round ----------------------------------------------------------------------------------------------

function begin(made) {
  round = made
  if (!round.queue.length) return home("Nothing is due. An evening's round drills anyway.")
  step()
}

function step() {
  current = round.next(new Date())
  if (!current) return finish()
  status("")
  ask(current)
}

function finish() {
  const misses = [...round.missed.values()].reduce((a, b) => a + b, 0)
  current = null
  const pages = round.reread().map((page) => element("li", {}, pageLink(page, "", cards.find((card) => card.page === page).title)))
  const told = `${round.right.length} right, ${misses} missed, ${round.queue.length} not reached`
  show(
    false,
    element("h2", { tabIndex: -1 }, told),
    pages.length ? element("p", {}, "Reread:") : null,
    pages.length ? element("ul", {}, ...pages) : null,
    element(
      "p",
      { className: "ma-quiz-buttons" },
      button(own ? "Once more" : "Back to the start", () => home(), { className: "md-button md-button--primary" }),
      own ? pageLink("quiz", "", "All cards", { className: "md-button" }) : null,
    ),
  )
  round = null
}

async function rated(rating) {
  const card = current
  const now = new Date()
  const due = await store.change((state) => state.answer(card.id, rating, now))
  round.answered(card, rating)
  const full = store.unsaved ? " This browser has no room to keep answers: export them before you leave." : ""
  step()
  status(`${RATINGS[rating]}: back ${when(due, now)}. ${round ? `${round.queue.length + 1} to come.` : ""}${full}`)
}

async function undo() {
  if (!round?.last.length) return status("Nothing to take back in this round.")
  await store.change((state) => state.undo())
  round.undo(current)
  step()
  status("Taken back.")
}

// ---- The kinds of card ------------------------------------------------------------------------------------

function frame(card, kind, front, ...children) {
  show(
    true,
    element("p", { className: "ma-quiz-kind" }, `${TOPICS[card.topic]} · ${kind}`),
    element("div", { className: "ma-quiz-front", tabIndex: -1 }, markup(front)),
    ...children,
    element("p", { className: "ma-quiz-keys" }, button("Undo (u)", undo), " ", button("Stop (q)", finish)),
  )
}

function ask(card) {
  if (card.kind === "recall") return recall(card)
  if (card.kind === "spot") return spot(card)
  if (card.kind === "estimate") return estimate(card)
  const options = card.kind === "choice" ? shuffled(card.options) : card.options
  const right = options.findIndex((option) => option.right)
  const explained = (at) =>
    card.kind === "choice"
      ? [options[at], ...options].map((option) => option.feedback).find(Boolean) ?? ""
      : `<p><strong>${options[right].text}</strong></p>${card.back}`
  frame(
    card,
    card.kind === "choice" ? "which would you say?" : "people say",
    card.front,
    choices(options.map((option) => markup(option.text, "span")), right, (at) => markup(explained(at))),
  )
}

function recall(card) {
  const reveal = button("Show the answer (Enter)", () => {
    const ratings = Object.entries(RATINGS).map(([n, label]) => button(`${label} (${n})`, () => rated(Number(n)), { className: "md-button ma-quiz-answer" }))
    place.replaceChildren(markup(card.back), evidence(card), element("p", { className: "ma-quiz-buttons" }, ...ratings))
    ratings[2].focus()
  }, { className: "md-button md-button--primary ma-quiz-go" })
  const place = element("div", { "aria-live": "polite" }, reveal)
  frame(card, "say it aloud", card.front, place)
}

function spot(card) {
  const slot = pick(card.slots)
  const wrong = pick(slot.wrong)
  const steps = card.steps.map((text, at) => markup(at === slot.step ? text.replace(slot.right, wrong) : text, "span"))
  frame(card, "spot the wrong number", card.front, choices(steps, slot.step, () => markup(`<p>Step ${slot.step + 1} said ${wrong}; it is ${slot.right}.</p>`)))
}

function estimate(card) {
  const stated = card.estimate
  const known = units[stated.dimension]
  const drawn = draw(stated, Math.floor(Math.random() * 2 ** 32))
  const input = element("input", { type: "text", className: "ma-quiz-guess", autocomplete: "off", placeholder: example(known), "aria-describedby": "ma-quiz-told" })
  const told = element("p", { id: "ma-quiz-told", className: "ma-quiz-judged", role: "alert" })
  const place = element("div", { "aria-live": "polite" })
  const form = element("form", {}, element("label", {}, "Your estimate, with its unit ", input), " ", element("button", { type: "submit", className: "md-button md-button--primary" }, "Commit (Enter)"), told, place)
  form.onsubmit = (event) => {
    event.preventDefault()
    try {
      const [guess, unit] = guessed(input.value, known, unitless.includes(stated.dimension))
      const found = grade(stated, drawn.values, guess, unit, known)
      const word = { 1: "Wrong", 2: "Near", 3: "Right" }[found.rating]
      told.textContent = found.rating === GOOD ? "Right." : `${word}: ${off(found.error)}.`
      input.readOnly = true
      form.querySelector("[type=submit]").remove()
      const go = button("Go on (Enter)", () => rated(found.rating), { className: "md-button md-button--primary ma-quiz-go" })
      const lines = [found.mistake, ...solution(stated, drawn.values, known)].filter(Boolean)
      place.replaceChildren(markup(lines.map((line) => `<p>${line}</p>`).join("")), evidence(card), go)
      go.focus()
    } catch (error) {
      if (!(error instanceof GuessError)) throw error
      told.textContent = `${error.message}.`
    }
  }
  frame(card, "estimate", question(card.front, drawn), form)
  input.focus()
}

// Options as numbered buttons; after the answer, what was right and a button to go on.
function choices(options, right, explain) {
  const place = element("div", { "aria-live": "polite" })
  const buttons = options.map((option, at) =>
    element("button", { type: "button", className: "ma-quiz-option ma-quiz-answer", onclick: () => judge(at) }, element("span", { className: "ma-quiz-number" }, `${at + 1}`), option),
  )
  function judge(at) {
    buttons.forEach((each, index) => {
      each.disabled = true
      each.classList.remove("ma-quiz-answer")
      if (index === right) each.classList.add("right")
      else if (index === at) each.classList.add("wrong")
    })
    const go = button("Go on (Enter)", () => rated(at === right ? GOOD : AGAIN), { className: "md-button md-button--primary ma-quiz-go" })
    place.replaceChildren(element("p", { className: "ma-quiz-judged" }, at === right ? "Right." : `Wrong: it is ${right + 1}.`), explain(at), evidence(current), go)
    go.focus()
  }
  return element("div", {}, element("div", { className: "ma-quiz-options" }, ...buttons), place)
}

// ---- Keys -------------------------------------------------------------------------------------------------

document.addEventListener("keydown", (event) => {
  if (!current || event.ctrlKey || event.metaKey || event.altKey) return
  if (event.target.closest("input, textarea, [contenteditable], .md-search")) return
  const answers = [...root.querySelectorAll(".ma-quiz-answer")]
  const go = root.querySelector(".ma-quiz-go")
  const number = Number(event.key)
  const act =
    (number >= 1 && answers[number - 1]) ||
    (event.key === "Enter" && !event.target.closest("button, a") && go) ||
    { u: undo, q: finish }[event.key]
  if (!act) {
    if (event.key.length === 1) event.stopPropagation() // the theme's keys lead to another page
    return
  }
  event.preventDefault()
  event.stopPropagation()
  if (act.click) act.click()
  else act()
}, true)

addEventListener("storage", (event) => event.key === store.key && !round && !going() && cards.length && home())

try {
  const found = await fetch(new URL("cards.json", import.meta.url))
  ;({ cards, units, unitless } = await found.json())
  const asked = new URLSearchParams(location.search)
  const inPlace = own
  if (!own && cards.some((card) => card.page === asked.get("page"))) own = asked.get("page")
  evening = Math.max(0, Number(asked.get("tonight")) || 0)
  home()
  own = inPlace
  evening = 0
} catch (error) {
  show(false, element("p", {}, `The cards could not be loaded (${error.message}). Serve the site: make serve.`))
}
