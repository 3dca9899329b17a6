// Batching simulated: the twin of snippets/models/scheduler.py, then the form that asks it. Whole numbers throughout, so
// both sides give the same answer to the last digit; a test runs them on the same settings.

globalThis.measuredScheduler = (() => {
  const POLICIES = ["static", "window", "length", "continuous"]
  const DISTRIBUTIONS = ["constant", "uniform", "geometric", "few long"]
  const [MODULUS, FACTOR] = [2 ** 31 - 1, 48271]
  // Nanoseconds of a step, of a new token, of a cached one: Llama-3-8B in BF16 on an H100, as the page derives them.
  const COST = { step: 4480393, token: 15170, context: 39 }

  // A setting that nothing can be simulated for; `field` is the one to mend, where there is one.
  class SettingError extends Error {
    constructor(reason, field = "") {
      super(reason)
      Object.assign(this, { reason, field })
    }
  }

  class Scheduler {
    constructor(requests, limits) {
      const { policy, batch, budget, blocks, block_tokens, window } = limits
      if (!POLICIES.includes(policy)) throw new SettingError(`${policy} is none of ${POLICIES.join(", ")}`)
      if (Math.min(batch, block_tokens) < 1 || window < 0) {
        throw new SettingError("a batch and a block have at least one place, and a window is not negative")
      }
      if (budget < batch) throw new SettingError(`a budget of ${budget} tokens starves a batch of ${batch}`, "budget")
      requests.forEach((request, number) => {
        if (number && requests[number - 1].arrival > request.arrival) {
          throw new SettingError("requests come in order of arrival")
        }
        if (Math.min(request.prompt, request.answer) < 1) {
          throw new SettingError(`request ${number} needs a token of prompt and one of answer`)
        }
        if (Math.ceil((request.prompt + request.answer - 1) / block_tokens) > blocks) {
          throw new SettingError(`request ${number} does not fit the cache even alone`, "cache")
        }
      })
      Object.assign(this, { requests, limits, running: [], free: blocks })
      this.waiting = requests.map((_, number) => number)
      this.cached = requests.map(() => 0)
      this.written = requests.map(() => 0)
    }

    blocksOf(tokens) {
      return Math.ceil(tokens / this.limits.block_tokens)
    }

    pending(request) {
      return this.requests[request].prompt + this.written[request] - this.cached[request]
    }

    next(now) {
      const [counts, preempted] = [new Map(), []]
      if (this.limits.policy === "continuous") {
        this.continue(counts, preempted)
        if (!preempted.length) this.admit(now, counts)
      } else {
        if (!this.running.length && this.waiting.length && this.wake() <= now) this.form(now)
        for (const request of this.running) this.give(request, this.pending(request), counts)
      }
      return counts.size ? this.finished(counts, preempted) : null
    }

    continue(counts, preempted) {
      let left = this.limits.budget - this.running.filter((request) => this.pending(request) === 1).length
      for (let at = 0; at < this.running.length; at += 1) {
        const request = this.running[at]
        const pending = this.pending(request)
        const fresh = pending === 1 ? 1 : Math.min(pending, left)
        while (this.fresh(request, fresh) > this.free) {
          const youngest = this.running.pop()
          preempted.push(youngest)
          this.preempt(youngest)
          if (youngest === request) return
        }
        if (!fresh) continue
        if (pending > 1) left -= fresh
        this.give(request, fresh, counts)
      }
    }

    admit(now, counts) {
      let left = this.limits.budget - sum([...counts.values()])
      while (this.waiting.length && left && this.running.length < this.limits.batch) {
        const request = this.waiting[0]
        const promised = sum(this.running.map((other) => this.fresh(other, this.pending(other))))
        const whole = this.fresh(request, this.pending(request))
        if (this.requests[request].arrival > now || promised + whole > this.free) return
        this.running.push(this.waiting.shift())
        const fresh = Math.min(this.pending(request), left)
        this.give(request, fresh, counts)
        left -= fresh
      }
    }

    wake() {
      const { policy, batch, window } = this.limits
      const oldest = this.requests[this.waiting[0]].arrival
      if (policy === "continuous") return oldest
      const full = this.requests[this.waiting[Math.min(batch, this.waiting.length) - 1]].arrival
      if (policy === "static") return full
      return this.waiting.length >= batch ? Math.min(full, oldest + window) : oldest + window
    }

    form(now) {
      const { policy, batch, budget, blocks } = this.limits
      const known = this.waiting.filter((request) => this.requests[request].arrival <= now)
      if (policy === "length") {
        const like = this.requests[known[0]].prompt
        const unlike = (request) => Math.abs(this.requests[request].prompt - like)
        known.sort((one, other) => unlike(one) - unlike(other))
      }
      let [longest, held] = [0, 0]
      for (const request of known.slice(0, batch)) {
        const { prompt, answer } = this.requests[request]
        longest = Math.max(longest, prompt)
        held += this.blocksOf(prompt + answer - 1)
        const padded = policy === "length" ? (this.running.length + 1) * longest : 0
        if (this.running.length && (held > blocks || padded > budget)) break
        this.running.push(request)
      }
      this.waiting = this.waiting.filter((request) => !this.running.includes(request))
    }

    fresh(request, count) {
      return this.blocksOf(this.cached[request] + count) - this.blocksOf(this.cached[request])
    }

    give(request, count, counts) {
      this.free -= this.fresh(request, count)
      this.cached[request] += count
      counts.set(request, count)
    }

    preempt(request) {
      this.free += this.blocksOf(this.cached[request])
      this.cached[request] = 0
      this.waiting.unshift(request)
    }

    finished(counts, preempted) {
      const given = [...counts.keys()]
      const context = sum(given.map((request) => this.cached[request]))
      const writes = given.filter((request) => !this.pending(request))
      for (const request of writes) this.written[request] += 1
      for (const request of writes) {
        if (this.written[request] < this.requests[request].answer) continue
        this.free += this.blocksOf(this.cached[request])
        this.running.splice(this.running.indexOf(request), 1)
      }
      return { tokens: sum([...counts.values()]), writes, preempted, context }
    }
  }

  const sum = (numbers) => numbers.reduce((a, b) => a + b, 0)

  function percentile(numbers, percent) {
    if (!numbers.length) return 0
    const sorted = Float64Array.from(numbers).sort()
    return sorted[Math.max(0, Math.ceil((percent * sorted.length) / 100) - 1)]
  }

  // Run a trace to its end and sum it up: whole numbers, times in the clock's unit.
  function run(requests, limits, cost, first_limit, gap_limit) {
    const scheduler = new Scheduler(requests, limits)
    const times = requests.map(() => [])
    let [now, steps, run_tokens, preempted] = [0, 0, 0, 0]
    while (scheduler.waiting.length || scheduler.running.length) {
      const step = scheduler.next(now)
      if (step === null) {
        now = scheduler.wake()
        continue
      }
      now += cost.step + cost.token * step.tokens + cost.context * step.context
      steps += 1
      run_tokens += step.tokens
      preempted += step.preempted.length
      for (const request of step.writes) times[request].push(now)
    }
    const first = times.map((written, request) => written[0] - requests[request].arrival)
    const whole = times.map((written, request) => written.at(-1) - requests[request].arrival)
    const gaps = times.map((written) => written.slice(1).map((at, before) => at - written[before]))
    const found = {}
    for (const [name, numbers] of [["first", first], ["gap", gaps.flat()], ["whole", whole]]) {
      for (const percent of [50, 95, 99]) found[`${name}_p${percent}`] = percentile(numbers, percent)
    }
    const good = first.filter((wait, request) => wait <= first_limit && gaps[request].every((gap) => gap <= gap_limit))
    const written_tokens = sum(times.map((written) => written.length))
    const counts = { steps, run_tokens, written_tokens, preempted, requests: requests.length, good: good.length }
    return { ...found, ...counts, span: now - requests[0].arrival }
  }

  // The minimal standard of Park, Miller and Stockmeyer: products stay below what a double holds exactly.
  class Draws {
    constructor(seed) {
      this.state = (seed % (MODULUS - 1)) + 1
      for (let n = 0; n < 8; n += 1) this.below(2)
    }

    below(most) {
      this.state = (this.state * FACTOR) % MODULUS
      return this.state % most
    }

    length(distribution, mean) {
      if (distribution === "constant") return mean
      if (distribution === "uniform") return 1 + this.below(2 * mean - 1)
      if (distribution === "few long") return Math.floor((this.below(8) ? mean : 9 * mean) / 2)
      if (distribution !== "geometric") throw new SettingError(`${distribution} is no distribution`)
      let tokens = 1
      while (this.below(mean)) tokens += 1
      return tokens
    }
  }

  function trace(count, gap, prompts, answers, seed, unit) {
    const draws = new Draws(seed)
    const made = []
    let now = 0
    for (let n = 0; n < count; n += 1) {
      made.push({ arrival: now * unit, prompt: draws.length(...prompts), answer: draws.length(...answers) })
      now += gap ? draws.length("geometric", gap) : 0
    }
    return made
  }

  return { POLICIES, DISTRIBUTIONS, COST, SettingError, Scheduler, Draws, trace, run, percentile }
})()

// ---- The form ---------------------------------------------------------------------------------------------------

;(() => {
  const { POLICIES, DISTRIBUTIONS, COST, SettingError, trace, run } = globalThis.measuredScheduler
  const [MS, SECOND] = [1e6, 1e9]
  // label, what it begins with, least, most
  const FIELDS = {
    load: ["Requests a second", 25, 0.1, 1000],
    count: ["Requests in all", 300, 1, 1000],
    prompt: ["Prompt tokens, mean", 512, 2, 10000],
    prompts: ["Prompts are", "few long"],
    answer: ["Answer tokens, mean", 128, 2, 2000],
    answers: ["Answers are", "geometric"],
    batch: ["Batch, requests", 32, 1, 512],
    budget: ["Chunk: tokens a step", 512, 1, 1e6],
    block: ["Block, tokens", 16, 1, 1024],
    cache: ["Cache, tokens", 65536, 1, 1e8],
    window: ["Window, ms", 500, 0, 60000],
    first: ["Good: first token within, ms", 1000, 1, 1e6],
    gap: ["Good: pauses at most, ms", 25, 1, 1e6],
  }
  const FIELDSETS = [
    ["Load", ["load", "count", "prompt", "prompts", "answer", "answers"]],
    ["Server", ["batch", "budget", "block", "cache", "window"]],
    ["Goodput counts", ["first", "gap"]],
  ]
  const MOST_TOKENS = 400000

  function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag)
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value)
    made.append(...children)
    return made
  }

  const grouped = (number) => number.toLocaleString("en-US", { maximumFractionDigits: 1 })
  const time = (nanoseconds) =>
    nanoseconds < SECOND ? `${(nanoseconds / MS).toFixed(1)} ms` : `${(nanoseconds / SECOND).toFixed(2)} s`
  const rate = (count, span) => grouped((count / span) * SECOND)
  const ROWS = [
    ["Goodput, requests a second", (found) => rate(found.good, found.span)],
    ["Good requests", (found) => `${grouped(found.good)} of ${grouped(found.requests)}`],
    ["Tokens a second", (found) => grouped(Math.round((found.written_tokens / found.span) * SECOND))],
    ["First token, p50", (found) => time(found.first_p50)],
    ["First token, p99", (found) => time(found.first_p99)],
    ["Between tokens, p50", (found) => time(found.gap_p50)],
    ["Between tokens, p99", (found) => time(found.gap_p99)],
    ["Whole answer, p50", (found) => time(found.whole_p50)],
    ["Whole answer, p99", (found) => time(found.whole_p99)],
    ["Steps", (found) => grouped(found.steps)],
    ["Preempted", (found) => grouped(found.preempted)],
  ]

  class Simulator {
    constructor(place) {
      this.inputs = {}
      const form = element("form", { class: "ma-calc", "aria-label": "Simulator", novalidate: "" })
      for (const [legend, names] of FIELDSETS) {
        form.append(element("fieldset", {}, element("legend", {}, legend), ...names.map((name) => this.field(name))))
      }
      const status = { role: "status", "aria-live": "polite", "aria-atomic": "true" }
      this.output = element("div", { class: "ma-calc-out", ...status })
      this.rows = element("tbody")
      const heads = ["", ...POLICIES].map((name) => (name ? element("th", { scope: "col" }, name) : element("td")))
      const caption = element("caption", {}, "The same requests under four policies")
      const table = element("table", { class: "ma-calc-table" }, caption)
      table.append(element("thead", {}, element("tr", {}, ...heads)), this.rows)
      const scroll = { style: "overflow-x: auto", tabindex: "0", role: "region", "aria-label": "Simulated figures" }
      this.table = element("div", scroll, table)
      form.addEventListener("submit", (event) => event.preventDefault())
      form.addEventListener("input", () => this.show())
      place.replaceChildren(form, this.output, this.table)
      this.show()
    }

    field(name) {
      const [label, begin] = FIELDS[name]
      const id = `sim-${name}`
      const error = element("span", { class: "ma-calc-error", id: `${id}-error` })
      const common = { id, name, "aria-describedby": error.id }
      let input
      if (typeof begin === "string") {
        input = element("select", common, ...DISTRIBUTIONS.map((one) => element("option", { value: one }, one)))
      } else {
        const inputmode = name === "load" ? "decimal" : "numeric"
        input = element("input", { ...common, type: "text", inputmode, autocomplete: "off", spellcheck: "false" })
      }
      input.value = typeof begin === "string" ? begin : grouped(begin)
      this.inputs[name] = input
      return element("p", { class: "ma-calc-field" }, element("label", { for: id }, label), input, error)
    }

    read() {
      const asked = {}
      for (const [name, [, begin, least, most]] of Object.entries(FIELDS)) {
        const text = this.inputs[name].value
        if (typeof begin === "string") {
          asked[name] = text
          continue
        }
        const plain = text.replace(/[,_\s\u00a0]/g, "")
        const number = plain === "" ? NaN : Number(plain)
        const whole = name === "load" || Number.isInteger(number)
        if (!(whole && number >= least && number <= most)) {
          const kind = name === "load" ? "a number" : "a whole number"
          throw new SettingError(`${kind} from ${grouped(least)} to ${grouped(most)} is needed`, name)
        }
        asked[name] = number
      }
      if (asked.count * asked.answer > MOST_TOKENS) {
        throw new SettingError(`at most ${grouped(MOST_TOKENS)} tokens are simulated: fewer requests, please`, "count")
      }
      return asked
    }

    show() {
      for (const input of Object.values(this.inputs)) {
        input.removeAttribute("aria-invalid")
        document.getElementById(`${input.id}-error`).textContent = ""
      }
      try {
        this.fill(this.read())
      } catch (error) {
        if (!(error instanceof SettingError)) throw error
        this.refuse(error)
      }
    }

    fill(asked) {
      const gap = Math.max(1, Math.round(1000 / asked.load))
      const requests = trace(asked.count, gap, [asked.prompts, asked.prompt], [asked.answers, asked.answer], 2, MS)
      const longest = Math.max(...requests.map((request) => request.prompt))
      const blocks = Math.floor(asked.cache / asked.block)
      const server = { batch: asked.batch, blocks, block_tokens: asked.block, window: asked.window * MS }
      const found = POLICIES.map((policy) => {
        const budget = policy === "length" ? asked.batch * longest : asked.budget
        return run(requests, { ...server, policy, budget }, COST, asked.first * MS, asked.gap * MS)
      })
      this.table.hidden = false
      this.rows.replaceChildren(
        ...ROWS.map(([label, shown]) => {
          const cells = found.map((one) => element("td", {}, shown(one)))
          return element("tr", {}, element("th", { scope: "row" }, label), ...cells)
        }),
      )
      const [last, one] = [found.at(-1), found[0]]
      this.output.dataset.state = last.good === last.requests ? "yes" : "no"
      this.output.textContent =
        `Continuous batching serves ${grouped(last.good)} of ${grouped(last.requests)} requests well, ` +
        `${rate(last.good, last.span)} a second; static ${grouped(one.good)}, ${rate(one.good, one.span)} a second.`
    }

    refuse({ field, reason }) {
      const name = this.inputs[field] ? field : "batch"
      this.inputs[name].setAttribute("aria-invalid", "true")
      document.getElementById(`sim-${name}-error`).textContent = reason
      this.output.dataset.state = "refused"
      this.output.textContent = `${FIELDS[name][0]}: ${reason}.`
      this.table.hidden = true
    }
  }

  function start() {
    for (const place of document.querySelectorAll("[data-simulator]")) {
      if (!place.querySelector("form")) new Simulator(place)
    }
  }

  if (globalThis.document$) document$.subscribe(start)
  else start()
})()
