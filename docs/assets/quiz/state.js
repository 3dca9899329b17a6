// When a card comes back, and what a reader has answered: the twin of measured/schedule.py, with the same file format.

import { fsrs } from "./ts-fsrs.js"

const FORMAT = "measured-answers-quiz"
const VERSION = 1
const FIELDS = ["difficulty", "due", "last_review", "stability", "state", "step"]
const REVIEW = 2
const KNOWN_DAYS = 7
const DAY = 86_400_000
// The algorithm alone, without steps within a day (a round brings its misses back itself) and without fuzz: browser and
// terminal must name the same day.
const scheduler = fsrs({ enable_fuzz: false, learning_steps: [], relearning_steps: [] })

// A state that cannot be read; it is refused whole, and nothing is overwritten.
export class StateError extends Error {}

export class State {
  constructor(cards = {}, log = []) {
    this.cards = cards
    this.log = log
  }

  due(id) {
    return this.cards[id] ? new Date(this.cards[id].due) : null
  }

  // Whether a card would still be remembered in a week.
  known(id) {
    return this.cards[id]?.stability >= KNOWN_DAYS
  }

  answer(id, rating, now) {
    const before = this.cards[id]
    const days = before ? Math.floor((now - new Date(before.last_review)) / DAY) : 0
    const memory = scheduler.next_state(before ?? null, days, rating)
    const due = new Date(now.getTime() + scheduler.next_interval(memory.stability, days) * DAY)
    this.cards[id] = {
      state: REVIEW,
      step: null,
      stability: memory.stability,
      difficulty: memory.difficulty,
      due: due.toISOString(),
      last_review: now.toISOString(),
    }
    this.log.push([now.toISOString(), id, rating])
    return due
  }

  // Take back the last answer: its card is scheduled anew from the answers before.
  undo() {
    const last = this.log.pop()
    if (!last) return null
    this.replay(last[1])
    return last[1]
  }

  replay(id) {
    delete this.cards[id]
    const whole = this.log
    this.log = []
    for (const [time, each, rating] of whole) if (each === id) this.answer(id, rating, new Date(time))
    this.log = whole
  }

  // Every answer of both, each card scheduled by all of its answers.
  merge(other) {
    const before = this.log.length
    const both = Object.keys(this.cards).filter((id) => id in other.cards)
    this.cards = { ...other.cards, ...this.cards }
    const all = new Map([...this.log, ...other.log].map((entry) => [JSON.stringify(entry), entry]))
    this.log = [...all.keys()].sort().map((key) => all.get(key))
    both.forEach((id) => this.replay(id))
    return this.log.length - before
  }

  asText() {
    return `${JSON.stringify({ format: FORMAT, version: VERSION, cards: this.cards, log: this.log }, null, 1)}\n`
  }
}

function time(text) {
  if (typeof text !== "string" || !/(Z|[+-]\d\d:\d\d)$/.test(text)) throw new Error(`time ${text} names no zone`)
  return new Date(text).toISOString()
}

function entry(found) {
  if (JSON.stringify(Object.keys(found).sort()) !== JSON.stringify(FIELDS)) throw new Error("a card's fields")
  if (![1, 2, 3].includes(found.state) || !(found.stability > 0)) throw new Error(`state ${found.state}`)
  return { ...found, due: time(found.due), last_review: time(found.last_review) }
}

// A state from a file's content; throws StateError with what is wrong, and where.
export function read(text, where) {
  let found
  try {
    found = JSON.parse(text)
  } catch (error) {
    throw new StateError(`${where} is no JSON (${error.message}): nothing was changed`)
  }
  if (found?.format !== FORMAT) throw new StateError(`${where} is not a quiz state of Measured Answers: nothing was changed`)
  if (found.version !== VERSION) {
    throw new StateError(`${where} is of version ${found.version}, this page reads ${VERSION}: nothing was changed`)
  }
  try {
    const cards = Object.fromEntries(Object.entries(found.cards).map(([id, each]) => [id, entry(each)]))
    const log = found.log.map(([when, id, rating]) => {
      if (![1, 2, 3, 4].includes(rating)) throw new Error(`rating ${rating}`)
      return [time(when), String(id), rating]
    })
    return new State(cards, log)
  } catch (error) {
    throw new StateError(`${where} has an entry that cannot be read (${error.message}): nothing was changed`)
  }
}

// The state in the browser's storage. Each change reads, changes and writes under a lock that all tabs share.
export class Store {
  constructor(key = FORMAT) {
    this.key = key
    this.full = false
  }

  load() {
    const text = this.unsaved ?? localStorage.getItem(this.key)
    return text ? read(text, "what this browser keeps") : new State()
  }

  async change(how) {
    const run = () => {
      const state = this.load()
      const result = how(state)
      try {
        localStorage.setItem(this.key, state.asText())
        this.unsaved = undefined
      } catch {
        this.unsaved = state.asText() // no room: kept until the page is left, and said
      }
      return result
    }
    return navigator.locks ? navigator.locks.request(this.key, run) : run()
  }

  raw() {
    return this.unsaved ?? localStorage.getItem(this.key) ?? new State().asText()
  }

  reset() {
    this.unsaved = undefined
    localStorage.removeItem(this.key)
  }
}
