// What fits on a card: the twin of snippets/models/capacity.py, then the form that asks it. Choices and defaults come
// from capacity_data.js, which Python writes; a test runs both sides on the same settings.

globalThis.measuredCalculator = (() => {
  const GIB = 2 ** 30
  const GB = 1e9
  const LARGEST = Number.MAX_SAFE_INTEGER
  const SHAPE = ["layers", "hidden", "heads", "kv_heads", "head_dim", "ffn", "vocabulary"]
  const { schemes, caches, defaults } = globalThis.measuredCapacity

  // A setting that nothing can be computed for; `field` is the one to mend.
  class SettingError extends Error {
    constructor(field, reason) {
      super(`${field}: ${reason}`)
      Object.assign(this, { field, reason })
    }
  }

  // More is asked for than fits.
  class CapacityError extends Error {
    constructor(message, short_bytes, remedies) {
      super(message)
      Object.assign(this, { short_bytes, remedies })
    }
  }

  const grouped = (count) => count.toLocaleString("en-US")
  const plural = (noun, count) => (count === 1 ? noun : `${noun}s`)
  const sum = (numbers) => numbers.reduce((a, b) => a + b, 0)

  function requireWhole(record, field, least, most) {
    const value = record[field]
    if (!Number.isInteger(value) || value < least || value > most) {
      throw new SettingError(field, `a whole number from ${grouped(least)} to ${grouped(most)} is needed`)
    }
  }

  // The setting with its defaults and with what one card holds; refuses what Python refuses, in the same order.
  function setting(record) {
    for (const field of SHAPE) requireWhole(record, field, 1, 1e7)
    if (record.heads % record.kv_heads) {
      const told = `${grouped(record.heads)} heads do not divide by ${grouped(record.kv_heads)}`
      throw new SettingError("kv_heads", told)
    }
    const asked = { ...defaults, ...record, tied: record.tied === true, qk_norm: record.qk_norm === true }
    for (const field of ["context_tokens", "longest_tokens", "users", "cards", "group", "step_tokens"]) {
      requireWhole(asked, field, 1, 1e9)
    }
    requireWhole(asked, "card_bytes", 1, LARGEST)
    requireWhole(asked, "runtime_bytes", 0, LARGEST)
    for (const [field, known] of [["weights", schemes], ["cache", caches]]) {
      if (!Object.hasOwn(known, asked[field])) {
        throw new SettingError(field, `one of ${Object.keys(known).join(", ")} is needed`)
      }
    }
    if (asked.context_tokens > asked.longest_tokens) {
      const told = `the model's longest context is ${grouped(asked.longest_tokens)} tokens`
      throw new SettingError("context_tokens", told)
    }
    asked.shard = shard(asked)
    if (schemes[asked.weights].grouped) {
      for (const [, columns] of linearShapes(asked.shard)) {
        if (columns % asked.group || columns % 2) {
          const told = `${grouped(columns)} columns of a matrix do not divide by ${grouped(asked.group)}`
          throw new SettingError("group", told)
        }
      }
    }
    return asked
  }

  function shard(asked) {
    for (const field of ["heads", "kv_heads", "ffn"]) {
      if (asked[field] % asked.cards) {
        throw new SettingError("cards", `${grouped(asked[field])} ${field} do not divide by ${grouped(asked.cards)}`)
      }
    }
    const { heads, kv_heads, ffn, vocabulary, cards } = asked
    const divided = { heads: heads / cards, kv_heads: kv_heads / cards, ffn: ffn / cards }
    return { ...asked, ...divided, vocabulary: Math.ceil(vocabulary / cards) }
  }

  // (rows, columns) of one layer's matrices.
  function linearShapes({ hidden, heads, kv_heads, head_dim, ffn }) {
    const [queries, keys] = [heads * head_dim, kv_heads * head_dim]
    return [
      [queries, hidden],
      [keys, hidden],
      [keys, hidden],
      [hidden, queries],
      [ffn, hidden],
      [ffn, hidden],
      [hidden, ffn],
    ]
  }

  function matrixBytes([rows, columns], scheme, group) {
    const scales = scheme.scale_bytes ? (scheme.grouped ? Math.floor(columns / group) : 1) : 0
    return rows * (Math.floor((columns * scheme.bits) / 8) + scales * scheme.scale_bytes)
  }

  function weightsBytes(shape, weights, group) {
    const scheme = schemes[weights]
    const linear = sum(linearShapes(shape).map((each) => matrixBytes(each, scheme, group)))
    const kept = scheme.vocabulary ? scheme : schemes.bf16
    const vocabulary = matrixBytes([shape.vocabulary, shape.hidden], kept, group)
    const norms = shape.layers * (2 * shape.hidden + (shape.qk_norm ? 2 * shape.head_dim : 0)) + shape.hidden
    return shape.layers * linear + vocabulary * (shape.tied ? 1 : 2) + 2 * norms
  }

  function tokenBytes(shape, cache) {
    const { element_bytes, scale_bytes } = caches[cache]
    return 2 * shape.layers * shape.kv_heads * (shape.head_dim * element_bytes + scale_bytes)
  }

  const rowBytes = (shape) => 2 * (3 * shape.hidden + 3 * shape.ffn + 2 * shape.head_dim)
  const logitsBytes = (shape) => (2 + 4) * shape.vocabulary

  function budget(record) {
    const asked = setting(record)
    const [held, users] = [asked.shard, asked.users]
    const weights_bytes = weightsBytes(held, asked.weights, asked.group)
    const [token_bytes, row] = [tokenBytes(held, asked.cache), rowBytes(held)]
    const perUser = row + logitsBytes(asked)
    const fixed = weights_bytes + asked.runtime_bytes + asked.step_tokens * row
    const cache_bytes = users * asked.context_tokens * token_bytes
    const needed_bytes = fixed + users * perUser + cache_bytes
    if (needed_bytes > LARGEST) throw new SettingError("users", "the sum is beyond what can be counted exactly")
    const left_bytes = asked.card_bytes - fixed
    const user_bytes = asked.context_tokens * token_bytes + perUser
    return {
      card_bytes: asked.card_bytes,
      weights_bytes,
      runtime_bytes: asked.runtime_bytes,
      activations_bytes: asked.step_tokens * row + users * perUser,
      cache_bytes,
      token_bytes,
      needed_bytes,
      short_bytes: Math.max(0, needed_bytes - asked.card_bytes),
      left_bytes,
      user_bytes,
      most_users: Math.max(0, Math.floor(left_bytes / user_bytes)),
      left_tokens: Math.max(0, Math.floor((left_bytes - users * perUser) / token_bytes)),
      crossing_tokens: Math.floor(weights_bytes / token_bytes) + 1,
    }
  }

  // Single changes that would fit, each tried.
  function remedies(record) {
    const asked = setting(record)
    const now = budget(record)
    const each = Math.floor(now.left_bytes / asked.users) - (now.user_bytes - asked.context_tokens * now.token_bytes)
    const shorter = Math.min(asked.context_tokens, Math.floor(each / now.token_bytes))
    const most = now.most_users
    const wanted = [
      [[`${grouped(most)} ${plural("user", most)}`, { users: most }]],
      [[`a context of ${grouped(shorter)} ${plural("token", shorter)}`, { context_tokens: shorter }]],
      ["int8", "fp8"].map((cache) => [`a cache in ${caches[cache].label}`, { cache }]),
      ["int8", "int4", "int4_all"].map((weights) => [`weights in ${schemes[weights].label}`, { weights }]),
      [2, 4, 8].map((n) => [`${grouped(asked.cards * n)} cards`, { cards: asked.cards * n }]),
    ]
    return wanted
      .map((kind) => kind.find(([, change]) => fits({ ...record, ...change })))
      .filter(Boolean)
      .map(([label, change]) => ({ label, change }))
  }

  function fits(record) {
    try {
      return budget(record).short_bytes === 0
    } catch (error) {
      if (error instanceof SettingError) return false
      throw error
    }
  }

  // The budget of a setting that fits; else an error that says by how much it does not, and what would.
  function admit(record) {
    const [asked, found] = [setting(record), budget(record)]
    if (found.short_bytes === 0) return found
    const would = remedies(record)
    const wanted = `${grouped(asked.users)} ${plural("user", asked.users)} of ${grouped(asked.context_tokens)} tokens`
    const labels = would.map(({ label }) => label).join(" or ")
    const helps = would.length ? `It would fit with ${labels}.` : "No single change would fit."
    const needed = `need ${size(found.needed_bytes)} a card, and a card has ${size(found.card_bytes)}`
    const message = `${wanted} ${needed}: ${size(found.short_bytes)} too much. ${helps}`
    throw new CapacityError(message, found.short_bytes, would)
  }

  // Bytes in both units, apart; few bytes as they are.
  const size = (count) =>
    count < 1e7 ? `${grouped(count)} bytes` : `${hundredths(count, GIB)} GiB (${hundredths(count, GB)} GB)`

  function hundredths(count, unit) {
    let whole = Math.floor(count / unit)
    let part = Math.floor(((count - whole * unit) * 100 + unit / 2) / unit)
    if (part === 100) [whole, part] = [whole + 1, 0]
    return `${grouped(whole)}.${String(part).padStart(2, "0")}`
  }

  return { SHAPE, GIB, GB, SettingError, CapacityError, setting, budget, remedies, admit, size, hundredths, grouped }
})()

// ---- The form ---------------------------------------------------------------------------------------------------

;(() => {
  const { SHAPE, GIB, GB, SettingError, CapacityError, budget, admit, size, hundredths, grouped } =
    globalThis.measuredCalculator
  const { models, cards, schemes, caches, defaults } = globalThis.measuredCapacity
  const OWN = "own"

  const LABELS = {
    model: "Public shape",
    layers: "Layers",
    hidden: "Hidden size",
    heads: "Query heads",
    kv_heads: "KV heads",
    head_dim: "Head dim",
    ffn: "Feed-forward width",
    vocabulary: "Vocabulary",
    longest_tokens: "Longest context, tokens",
    tied: "Head tied to the embedding",
    card: "Sold as",
    card_bytes: "Usable, GiB a card",
    cards: "Cards (tensor parallel)",
    weights: "Weights in",
    group: "Group of an INT4 scale",
    cache: "KV cache in",
    context_tokens: "Context of a user, tokens",
    users: "Users at once",
    step_tokens: "Prompt tokens in one step",
    runtime_bytes: "Runtime, GiB a card",
  }
  const IN_GIB = ["card_bytes", "runtime_bytes"]
  const FIELDSETS = [
    ["Model", ["model"]],
    ["Card", ["card", "card_bytes", "cards"]],
    ["Stored as", ["weights", "group", "cache"]],
    ["Asked for", ["context_tokens", "users", "step_tokens", "runtime_bytes"]],
  ]
  const OPTIONS = {
    model: { ...Object.fromEntries(Object.entries(models).map(([key, { name }]) => [key, name])), [OWN]: "own shape" },
    card: { ...Object.fromEntries(Object.entries(cards).map(([key, { label }]) => [key, label])), [OWN]: "another" },
    weights: Object.fromEntries(Object.entries(schemes).map(([key, { label }]) => [key, label])),
    cache: Object.fromEntries(Object.entries(caches).map(([key, { label }]) => [key, label])),
  }
  // What each calculator begins with beside the defaults of the Python.
  const FIRST = {
    fits: { model: "llama-3-8b", card: "24" },
    users: { model: "llama-3-8b", card: "80" },
  }

  function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag)
    for (const [name, value] of Object.entries(attributes)) {
      if (value !== undefined) made.setAttribute(name, value)
    }
    made.append(...children)
    return made
  }

  const shown = (name, value) =>
    typeof value !== "number" ? value : IN_GIB.includes(name) ? hundredths(value, GIB) : grouped(value)

  // A number as typed, in the unit the functions take; NaN where it is none, which they refuse.
  function typed(name, text) {
    const plain = text.replace(/[,_\s\u00a0]/g, "")
    const number = plain === "" ? NaN : Number(plain)
    return IN_GIB.includes(name) ? Math.floor((Math.round(number * 100) * GIB) / 100) : number
  }

  class Calculator {
    constructor(place) {
      this.mode = place.dataset.calculator
      this.inputs = {}
      const form = element("form", { class: "ma-calc", "aria-label": "Calculator", novalidate: "" })
      for (const [legend, names] of FIELDSETS) {
        const set = element("fieldset", {}, element("legend", {}, legend), ...names.map((name) => this.field(name)))
        if (legend === "Model") set.append(this.shapeFields())
        form.append(set)
      }
      this.output = element("div", { class: "ma-calc-out", role: "status", "aria-live": "polite", "aria-atomic": "true" })
      this.rows = element("tbody")
      this.table = element(
        "table",
        { class: "ma-calc-table" },
        element("caption", {}, "Memory of one card"),
        element("thead", {}, row("th", ["", "GiB", "GB"])),
        this.rows,
      )
      this.facts = element("ul", { class: "ma-calc-facts" })
      form.addEventListener("submit", (event) => event.preventDefault())
      form.addEventListener("input", (event) => this.changed(event.target.name))
      place.replaceChildren(form, this.output, this.table, this.facts)
      this.begin()
    }

    field(name) {
      const id = `calc-${name}`
      const error = element("span", { class: "ma-calc-error", id: `${id}-error` })
      const common = { id, name, "aria-describedby": error.id }
      let input
      if (OPTIONS[name]) {
        const options = Object.entries(OPTIONS[name]).map(([value, label]) => element("option", { value }, label))
        input = element("select", common, ...options)
      } else if (name === "tied") {
        input = element("input", { ...common, type: "checkbox" })
      } else {
        const inputmode = IN_GIB.includes(name) ? "decimal" : "numeric"
        input = element("input", { ...common, type: "text", inputmode, autocomplete: "off", spellcheck: "false" })
      }
      this.inputs[name] = input
      return element("p", { class: "ma-calc-field" }, element("label", { for: id }, LABELS[name]), input, error)
    }

    shapeFields() {
      const names = [...SHAPE, "longest_tokens", "tied"]
      return element("details", {}, element("summary", {}, "Its shape"), ...names.map((name) => this.field(name)))
    }

    // Defaults, then what the address asks for.
    begin() {
      const start = { ...defaults, ...FIRST[this.mode] }
      this.set("model", start.model)
      this.set("card", start.card)
      const query = new URLSearchParams(location.search)
      for (const name of ["model", "card"]) if (OPTIONS[name][query.get(name)]) this.set(name, query.get(name))
      for (const [name, value] of Object.entries(start)) this.set(name, query.has(name) ? undefined : value)
      this.preset("model")
      this.preset("card")
      for (const [name, text] of query) {
        if (!this.inputs[name] || name === "model" || name === "card") continue
        if (OPTIONS[name] && !OPTIONS[name][text]) continue
        if (name === "tied") this.inputs.tied.checked = text === "true"
        else this.inputs[name].value = text
      }
      this.initial = { ...defaults, ...FIRST[this.mode] }
      this.show()
    }

    set(name, value) {
      const input = this.inputs[name]
      if (!input || value === undefined) return
      if (name === "tied") input.checked = value
      else input.value = shown(name, value)
    }

    // Fill in what a chosen model or card says; a context beyond the model's is brought down to it.
    preset(name) {
      const key = this.inputs[name].value
      const chosen = name === "model" ? models[key] : cards[key]
      if (!chosen) return
      for (const [part, value] of Object.entries(chosen)) this.set(part, value)
      const context = typed("context_tokens", this.inputs.context_tokens.value)
      if (chosen.longest_tokens < context) this.set("context_tokens", chosen.longest_tokens)
    }

    changed(name) {
      if (name === "model" || name === "card") this.preset(name)
      else if (SHAPE.includes(name) || name === "longest_tokens" || name === "tied") this.inputs.model.value = OWN
      else if (name === "card_bytes") this.inputs.card.value = OWN
      this.remember()
      this.show()
    }

    // What differs from the beginning stands in the address, so that a setting can be sent to someone.
    remember() {
      const query = new URLSearchParams()
      for (const [name, input] of Object.entries(this.inputs)) {
        const own = this.inputs[name === "card_bytes" ? "card" : "model"].value === OWN
        const part = SHAPE.includes(name) || ["longest_tokens", "tied", "card_bytes"].includes(name)
        const value = name === "tied" ? String(input.checked) : input.value
        if (part ? own : value !== shown(name, this.initial[name])) query.set(name, value)
      }
      const text = query.toString()
      history.replaceState(history.state, "", `${location.pathname}${text ? `?${text}` : ""}${location.hash}`)
    }

    record() {
      const found = { qk_norm: models[this.inputs.model.value]?.qk_norm ?? false }
      for (const [name, input] of Object.entries(this.inputs)) {
        if (name === "model" || name === "card") continue
        if (name === "tied") found[name] = input.checked
        else found[name] = OPTIONS[name] ? input.value : typed(name, input.value)
      }
      return found
    }

    show() {
      for (const input of Object.values(this.inputs)) {
        input.removeAttribute("aria-invalid")
        document.getElementById(`${input.id}-error`).textContent = ""
      }
      const record = this.record()
      try {
        const found = budget(record)
        this.say(found.short_bytes ? "no" : "yes", this.verdict(record, found))
        this.fill(found, record)
      } catch (error) {
        if (!(error instanceof SettingError)) throw error
        this.refuse(error)
      }
    }

    verdict(record, found) {
      const each = record.cards > 1 ? " each" : ""
      const most =
        `At most ${grouped(found.most_users)} ${found.most_users === 1 ? "user" : "users"} of ` +
        `${grouped(record.context_tokens)} tokens.`
      try {
        admit(record)
      } catch (error) {
        if (!(error instanceof CapacityError)) throw error
        return `${this.mode === "users" ? `${most} ` : ""}Does not fit: ${error.message}`
      }
      const sizes = `needs ${size(found.needed_bytes)} of ${size(found.card_bytes)}${each}.`
      return this.mode === "users" ? `${most} What is asked for fits: it ${sizes}` : `Fits: ${sizes} ${most}`
    }

    say(state, text) {
      this.output.dataset.state = state
      this.output.textContent = text
    }

    refuse({ field, reason }) {
      const input = this.inputs[field]
      // What is typed in GiB is refused in GiB.
      const told = IN_GIB.includes(field) ? "a number of GiB is needed" : reason
      input.setAttribute("aria-invalid", "true")
      document.getElementById(`${input.id}-error`).textContent = told
      input.closest("details")?.setAttribute("open", "")
      this.say("refused", `${LABELS[field]}: ${told}.`)
      this.table.hidden = this.facts.hidden = true
    }

    fill(found, record) {
      this.table.hidden = this.facts.hidden = false
      const spare = found.card_bytes - found.needed_bytes
      const parts = [
        ["Weights", found.weights_bytes],
        ["Runtime", found.runtime_bytes],
        ["Activations", found.activations_bytes],
        ["KV cache", found.cache_bytes],
        ["Needed", found.needed_bytes],
        ["Card", found.card_bytes],
        spare < 0 ? ["Missing", -spare] : ["Left", spare],
      ]
      this.rows.replaceChildren(
        ...parts.map(([label, bytes]) => row("td", [label, hundredths(bytes, GIB), hundredths(bytes, GB)])),
      )
      const facts = [
        `${grouped(found.token_bytes)} bytes of cache a token${record.cards > 1 ? " and card" : ""}`,
        `room for ${grouped(found.left_tokens)} tokens of all users together`,
        `the cache outgrows the weights at ${grouped(found.crossing_tokens)} tokens`,
      ]
      this.facts.replaceChildren(...facts.map((fact) => element("li", {}, fact)))
    }
  }

  function row(tag, [head, ...cells]) {
    const first = element("th", head ? { scope: tag === "th" ? "col" : "row" } : {}, head)
    if (!head) return element("tr", {}, element("td"), ...cells.map((cell) => element("th", { scope: "col" }, cell)))
    return element("tr", {}, first, ...cells.map((cell) => element(tag, {}, cell)))
  }

  function start() {
    for (const place of document.querySelectorAll("[data-calculator]")) {
      if (!place.querySelector("form")) new Calculator(place)
    }
  }

  if (globalThis.document$) document$.subscribe(start)
  else start()
})()
