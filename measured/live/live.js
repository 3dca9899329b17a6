// Runs a page's cells on this machine, on the Jupyter Server beside the site, and says which claims hold here.
// Only `measured serve` adds this file. Its token arrives in the address's fragment, which no server sees; it is taken
// out at once, kept for this tab alone, and travels in headers, never in an address that a log would keep.

const KEY = "ma-live"
const LOOPBACK = "127.0.0.1"
const KERNEL_PROTOCOL = "v1.kernel.websocket.jupyter.org"
const TOKEN_PROTOCOL = "v1.token.websocket.jupyter.org"
const VALUES = "application/vnd.measured.values+json"
const SERIES = "application/vnd.measured.series+json"
const TABLE = "application/vnd.measured.table+json"
const CHART = "application/vnd.measured.chart+json"
const LONGEST_STREAM = 200_000 // characters kept of what a cell prints

const given = location.hash.match(/^#live=(\d+\.[\w-]+)$/)
if (given) {
  history.replaceState(history.state, "", location.pathname + location.search)
  // Under another name of this machine the server would refuse us: leave nothing there.
  if (location.hostname === LOOPBACK) sessionStorage.setItem(KEY, given[1])
}
const [port, token] = (sessionStorage.getItem(KEY) ?? "").split(".")

// ---- Elements

function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag)
  for (const [name, value] of Object.entries(properties)) {
    if (name in made) made[name] = value
    else made.setAttribute(name, value)
  }
  made.append(...children)
  return made
}
const button = (label, onclick, properties = {}) =>
  element("button", { type: "button", className: "ma-live-button", onclick, ...properties }, label)
const number = (value) =>
  typeof value === "number" ? value.toLocaleString("en", Number.isInteger(value) ? {} : { maximumSignificantDigits: 4 }) : value

function table(heads, rows, caption, className) {
  const row = ([first, ...rest]) =>
    element("tr", {}, element("th", { scope: "row" }, first), ...rest.map((each) => element("td", {}, each)))
  return element(
    "table",
    { className },
    ...(caption ? [element("caption", {}, caption)] : []),
    ...(heads ? [element("thead", {}, element("tr", {}, ...heads.map((each) => element("th", { scope: "col" }, each))))] : []),
    element("tbody", {}, ...rows.map(row)),
  )
}

// A drawing keeps shapes and text only: whatever else an SVG may hold is left out.
const SHAPES = new Set(["svg", "g", "path", "line", "rect", "circle", "text", "tspan", "title"])
const LOOKS = /^(d|x|y|x1|y1|x2|y2|dx|dy|r|cx|cy|width|height|viewBox|transform|fill|stroke|opacity|display|font-(size|family|weight)|text-anchor|(fill|stroke)-[a-z]+)$/

function drawing(source, told) {
  const root = new DOMParser().parseFromString(source, "image/svg+xml").documentElement
  for (const each of [root, ...root.querySelectorAll("*")]) {
    if (!SHAPES.has(each.localName)) {
      each.remove()
      continue
    }
    for (const { name, value } of [...each.attributes]) {
      const ink = INKS.indexOf(value)
      if (!LOOKS.test(name) || /url\(/i.test(value)) each.removeAttribute(name)
      else if (ink >= 0) each.setAttribute(name, `var(--ma-series-${ink + 1}, ${value})`)
    }
  }
  if (root.localName !== "svg") return element("p", {}, told)
  root.setAttribute("role", "img")
  root.setAttribute("aria-label", told)
  return document.importNode(root, true)
}

// ---- What a cell shows, all of it as text

class Output {
  constructor(box) {
    this.box = box
    this.clear()
  }

  clear() {
    this.box.replaceChildren()
    this.box.hidden = true
    this.stream = null
  }

  add(...children) {
    this.stream = null
    this.box.hidden = false
    this.box.append(...children)
  }

  text(name, text) {
    if (this.stream?.name !== name) {
      const code = element("code")
      this.add(element("pre", { className: `ma-stream ma-live-${name}` }, code))
      this.stream = { name, code, text: "" }
    }
    // A carriage return begins its line again, as in a terminal.
    const all = (this.stream.text + text).replace(/[^\n]*\r(?=[^\r\n])/g, "")
    this.stream.text = all.slice(-LONGEST_STREAM)
    this.stream.code.textContent = this.stream.text
  }

  error({ ename, evalue, traceback }) {
    const trace = traceback.join("\n").replace(/\x1b\[[0-9;]*m/g, "")
    const short = ename === "KeyboardInterrupt" ? "Interrupted." : `${ename}: ${evalue}`
    this.add(
      element("pre", { className: "ma-stream ma-error" }, element("code", {}, short)),
      element("details", { className: "ma-live-trace" }, element("summary", {}, "Traceback"), element("pre", {}, element("code", {}, trace))),
    )
  }

  data(data) {
    const plain = data["text/plain"] ?? ""
    if (data[VALUES]) {
      const { class: kind, names, values } = data[VALUES]
      const rows = names.map((name) => [element("code", {}, name), number(values[name])])
      this.add(table(null, rows, `Class ${kind}`, "ma-values"))
    } else if (data[TABLE]) {
      // The kernel has written every cell with its unit, two blanks apart.
      const { columns, caption } = data[TABLE]
      const [heads, ...rows] = plain.split("\n").slice(1).map((line) => line.split("  "))
      const fits = heads && [heads, ...rows].every((row) => row.length === columns.length)
      const shown = fits ? table(heads, rows, caption, "") : element("pre", {}, plain)
      this.add(element("div", { className: "ma-table", tabIndex: 0, role: "region", "aria-label": caption }, shown))
    } else if (data[CHART]) {
      const { title, data: columns } = data[CHART]
      const names = Object.keys(columns)
      const rows = columns[names[0]].map((_, row) => names.map((name) => number(columns[name][row])))
      const drawn = drawing([data["image/svg+xml"]].flat().join(""), title)
      this.add(
        element(
          "figure",
          { className: "ma-chart" },
          element("figcaption", {}, title),
          element("div", { className: "ma-drawing", tabIndex: 0, role: "region", "aria-label": title }, drawn),
          element("details", {}, element("summary", {}, "Data table"), table(names, rows, "", "")),
        ),
      )
    } else if (data["image/png"]) {
      this.add(element("img", { alt: plain || "output", src: `data:image/png;base64,${[data["image/png"]].flat().join("").trim()}` }))
    } else if (!data[SERIES]) {
      this.add(element("pre", { className: "ma-stream" }, element("code", {}, plain)))
    }
  }
}

// ---- The kernel

async function ask(method, path, options = {}) {
  const reply = await fetch(`http://${LOOPBACK}:${port}/api/${path}`, {
    method,
    headers: { Authorization: `token ${token}` },
    credentials: "omit",
    ...options,
  })
  if (!reply.ok) throw new Error(`the Jupyter Server answered ${reply.status}`)
  return reply.status === 204 ? null : reply.json()
}

// A message is the number of offsets, the offsets, then the parts between them: channel, four of JSON, buffers.
function encode(channel, ...parts) {
  const texts = [channel, ...parts.map((each) => JSON.stringify(each))].map((each) => new TextEncoder().encode(each))
  const offsets = [8 * (texts.length + 2)]
  for (const each of texts) offsets.push(offsets.at(-1) + each.length)
  const bytes = new Uint8Array(offsets.at(-1))
  const view = new DataView(bytes.buffer)
  for (const [index, value] of [offsets.length, ...offsets].entries()) view.setBigUint64(8 * index, BigInt(value), true)
  texts.forEach((each, index) => bytes.set(each, offsets[index]))
  return bytes
}

function decode(buffer) {
  const view = new DataView(buffer)
  const offset = (index) => Number(view.getBigUint64(8 * (index + 1), true))
  const part = (index) => new TextDecoder().decode(buffer.slice(offset(index), offset(index + 1)))
  const [header, parent, , content] = [1, 2, 3, 4].map((index) => JSON.parse(part(index)))
  return { channel: part(0), type: header.msg_type, parent: parent.msg_id, content }
}

class Kernel {
  static async start() {
    const { id } = await ask("POST", "kernels", { body: JSON.stringify({ name: "python3", path: "" }) })
    return new Kernel(id)
  }

  constructor(id) {
    this.id = id
    this.session = crypto.randomUUID()
    this.running = null
    this.gone = null
    const address = `ws://${LOOPBACK}:${port}/api/kernels/${id}/channels?session_id=${this.session}`
    this.socket = new WebSocket(address, [KERNEL_PROTOCOL, `${TOKEN_PROTOCOL}.${token}`])
    this.socket.binaryType = "arraybuffer"
    this.socket.onmessage = ({ data }) => this.take(decode(data))
    this.socket.onclose = () => this.lose("The Jupyter Server has gone. Start it again and open its new link.")
    this.opened = new Promise((resolve) => (this.socket.onopen = resolve))
  }

  // What came of one request: its reply, when the kernel is idle again. One at a time.
  execute(code, { show = () => {}, expressions = {} } = {}) {
    if (this.gone) return Promise.reject(this.gone)
    const id = crypto.randomUUID()
    const header = { msg_id: id, msg_type: "execute_request", session: this.session, username: "", date: new Date().toISOString(), version: "5.4" }
    const content = { code, silent: false, store_history: false, user_expressions: expressions, allow_stdin: false, stop_on_error: false }
    return new Promise((resolve, reject) => {
      this.running = { id, show, resolve, reject, reply: null, idle: false }
      this.opened.then(() => this.socket.send(encode("shell", header, {}, {}, content)))
    })
  }

  take({ channel, type, parent, content }) {
    const { running } = this
    if (type === "status" && /restarting|dead/.test(content.execution_state)) {
      return this.lose("The kernel ended, perhaps for want of memory.")
    }
    if (parent !== running?.id) return
    if (type === "execute_reply") running.reply = content
    else if (type === "status") running.idle = content.execution_state === "idle"
    else if (channel === "iopub") running.show(type, content)
    if (running.reply && running.idle) {
      this.running = null
      running.resolve(running.reply)
    }
  }

  lose(why) {
    this.gone ??= new Error(why)
    this.running?.reject(this.gone)
    this.running = null
  }

  interrupt() {
    return ask("POST", `kernels/${this.id}/interrupt`)
  }

  end(why) {
    this.lose(why)
    this.socket.close()
    ask("DELETE", `kernels/${this.id}`, { keepalive: true }).catch(() => {}) // of a page that is left, too
  }
}

// ---- A cell of the page

class Cell {
  constructor(highlight, index, page) {
    Object.assign(this, { highlight, index, page, code: highlight.querySelector("pre > code"), area: null })
    this.original = [...this.code.childNodes]
    this.source = this.text = this.code.textContent
    this.state = element("span", { className: "ma-live-state" })
    const name = `cell ${index + 1}`
    this.edit = button("Edit", () => this.open(), { "aria-label": `Edit ${name}` })
    const run = button("Run", () => page.run(this), { "aria-label": `Run ${name}` })
    this.tools = element("div", { className: "ma-live-tools", role: "group", "aria-label": name }, run, this.edit, this.state)
    highlight.after(this.tools)
    const recorded = document.querySelector(`.ma-out[data-cell="${index}"]`)
    const box = element("div", { className: "ma-live-out", role: "region", "aria-label": `Output of ${name} here` })
    ;(recorded ?? this.tools).after(box)
    this.output = new Output(box)
    this.forget()
  }

  get edited() {
    return this.text !== this.source
  }

  // Nothing of it is in the kernel.
  forget() {
    Object.assign(this, { ran: false, values: new Set(), series: new Set() })
  }

  say(text, kind = "") {
    this.state.textContent = [text, this.edited ? "edited" : ""].filter(Boolean).join(" · ")
    this.state.className = `ma-live-state ${kind}`
  }

  open() {
    if (this.area) return
    const keys = `ma-live-keys-${this.index}`
    this.area = element("textarea", {
      className: "ma-live-edit", value: this.text, spellcheck: false, wrap: "off", rows: this.text.split("\n").length + 1,
      "aria-label": `Code of cell ${this.index + 1}`, "aria-describedby": keys, autocapitalize: "off", autocomplete: "off",
    })
    this.area.onkeydown = (event) => this.key(event)
    this.help = element("p", { className: "ma-live-keys", id: keys }, "Ctrl+Enter runs, Tab indents, Escape leaves.")
    this.highlight.hidden = true
    this.highlight.after(this.area, this.help)
    this.edit.textContent = "Done"
    this.edit.onclick = () => this.close()
    this.area.focus()
  }

  key(event) {
    const { area } = this
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault()
      this.page.run(this)
    } else if (event.key === "Escape") {
      event.preventDefault()
      this.close()
      this.edit.focus()
    } else if (event.key === "Tab" && !event.shiftKey) {
      event.preventDefault()
      area.setRangeText("    ", area.selectionStart, area.selectionEnd, "end")
    }
  }

  // What stands in the editor counts, whether or not it is closed.
  read() {
    if (this.area) this.text = this.area.value
    return this.text
  }

  close() {
    if (!this.area) return
    this.read()
    this.area.remove()
    this.help.remove()
    this.area = null
    this.highlight.hidden = false
    if (this.edited) this.code.textContent = this.text
    else this.code.replaceChildren(...this.original)
    this.edit.textContent = "Edit"
    this.edit.onclick = () => this.open()
    this.say("")
  }

  reset() {
    this.close()
    this.text = this.source
    this.code.replaceChildren(...this.original)
    this.output.clear()
    this.forget()
    this.say("")
  }

  async execute(kernel) {
    const code = this.read()
    this.output.clear()
    // A name is recorded once: what this cell recorded before goes first.
    const old = [...this.values].map((name) => `VALUES.pop(${JSON.stringify(name)}, None)`)
    old.push(...[...this.series].map((name) => `SERIES.pop(${JSON.stringify(name)}, None)`))
    if (old.length) await kernel.execute(`from measured.values import SERIES, VALUES\n${old.join("\n")}`)
    this.forget()
    const started = performance.now()
    const seconds = () => (performance.now() - started) / 1000
    const tick = setInterval(() => this.say(`running, ${seconds().toFixed(0)} s`, "running"), 1000)
    this.say("running", "running")
    try {
      const reply = await kernel.execute(code, { show: (type, content) => this.show(type, content) })
      this.ran = reply.status === "ok"
      const how = this.ran ? "ran in" : reply.ename === "KeyboardInterrupt" ? "interrupted after" : "failed after"
      this.say(`${how} ${seconds().toFixed(1)} s`, this.ran ? "ran" : "failed")
    } catch (error) {
      if (this.page.busy) this.say("stopped", "failed")
      throw error
    } finally {
      clearInterval(tick)
    }
    return this.ran
  }

  show(type, content) {
    if (type === "stream") {
      if (/^Waiting:/m.test(content.text)) this.page.say(content.text.trim())
      this.output.text(content.name, content.text)
    } else if (type === "error") this.output.error(content)
    else if (type === "clear_output") this.output.clear()
    else if (type === "display_data" || type === "execute_result") {
      for (const name of content.data[VALUES]?.names ?? []) this.values.add(name)
      if (content.data[SERIES]) this.series.add(content.data[SERIES].name)
      this.output.data(content.data)
    }
  }
}

// ---- The page

class LivePage {
  constructor(highlights, notebook) {
    this.kernel = null
    this.queue = []
    this.busy = null // what aborts the wait for other tabs, while cells are queued or run
    this.cells = highlights.map((each, index) => new Cell(each, index, this))
    this.claims = checks(notebook)
    this.status = element("p", { className: "ma-live-status", role: "status" }, "Cells run on this machine.")
    this.told = element("ul", { className: "ma-live-told" })
    const bar = element(
      "div",
      { className: "ma-live-bar", role: "group", "aria-label": "Run this page" },
      button("Run all", () => this.run()),
      button("Interrupt", () => this.interrupt()),
      button("Reset", () => this.reset()),
      this.status,
    )
    document.querySelector(".md-content__inner > h1").after(bar, this.told)
    addEventListener("pagehide", () => this.lost("The page was left."))
  }

  say(text) {
    this.status.textContent = text
  }

  // A cell runs after those before it that have not; all of them run in a fresh kernel.
  run(cell = null) {
    const wanted = cell ? this.cells.filter((each) => each === cell || (each.index < cell.index && !each.ran)) : [...this.cells]
    this.fresh ||= !cell
    this.queue = cell ? [...new Set([...this.queue, ...wanted])] : wanted
    for (const each of wanted) each.say("waiting")
    if (!this.busy) this.work()
  }

  async work() {
    const busy = (this.busy = new AbortController())
    this.say("Waiting for the runs of other tabs.")
    try {
      // The tabs of this site share one lock, so that one kernel computes at a time and none disturbs another's clock;
      // against other programs of this project the clock's own lock stands, which prints that it waits.
      await navigator.locks.request(KEY, { signal: busy.signal }, () => this.drain(busy.signal))
    } catch (error) {
      if (busy.signal.aborted) return
      this.drop()
      this.lost()
      this.say(error instanceof TypeError ? "The Jupyter Server does not answer. Start it again and open its new link." : error.message)
    } finally {
      if (this.busy === busy) {
        this.busy = null
        if (this.queue.length) this.work() // asked for while claims were checked
      }
    }
  }

  async drain(signal) {
    let failed = null
    const done = []
    while (this.queue.length) {
      if (this.fresh) this.lost()
      this.fresh = false
      if (!this.kernel) {
        this.say("Starting Python.")
        const kernel = await Kernel.start()
        if (signal.aborted) return kernel.end("")
        this.kernel = kernel
      }
      const cell = this.queue.shift()
      this.say(`Running cell ${cell.index + 1} of ${this.cells.length}.`)
      done.push(cell)
      if (!(await cell.execute(this.kernel))) {
        failed = cell
        this.drop()
      }
      if (signal.aborted) return
    }
    const counted = await this.check(signal)
    if (signal.aborted) return
    const how = failed ? `Cell ${failed.index + 1} did not finish.` : `Ran ${done.length === 1 ? `cell ${done[0].index + 1}` : `${done.length} cells`}.`
    this.say([how, counted].filter(Boolean).join(" "))
  }

  // Asserts every claim whose values exist, by the notebook's own cells.
  async check(signal) {
    const has = new Set(this.cells.flatMap((cell) => [...cell.values]))
    const able = await this.capabilities()
    const counts = {}
    this.told.replaceChildren()
    for (const claim of this.claims) {
      let state = ""
      let why = ""
      if (claim.names.every((name) => has.has(name)) && !signal.aborted) {
        let printed = ""
        const show = (type, content) => (printed += type === "stream" ? content.text : "")
        const reply = await this.kernel.execute(claim.code, { show })
        if (claim.needs.some((each) => !able.has(each))) state = "not applicable here"
        else if (reply.status === "ok") state = printed.includes(`claim ${claim.id}`) ? "holds here" : ""
        else if (reply.ename !== "KeyboardInterrupt") [state, why] = ["fails here", `${reply.ename}: ${reply.evalue}`]
      }
      this.mark(claim, state, why)
      if (state) counts[state] = (counts[state] ?? 0) + 1
    }
    const parts = Object.entries(counts).map(([state, count]) => `${count} ${count > 1 ? state.replace("s here", " here") : state}`)
    if (!parts.length) return ""
    const whose = this.cells.some((cell) => cell.edited && cell.ran) ? "Claims, of the edited code" : "Claims"
    return `${whose}: ${parts.join(", ")}.`
  }

  async capabilities() {
    if (!this.claims.some((claim) => claim.needs.length)) return new Set()
    const here = `' '.join(__import__("snippets.instruments.device", fromlist=["device"]).capabilities())`
    const { user_expressions: found } = await this.kernel.execute("", { expressions: { here } })
    return new Set((found?.here?.data?.["text/plain"] ?? "").replace(/'/g, "").split(" "))
  }

  mark({ id }, state, why = "") {
    const claim = document.getElementById(id)
    if (claim?.nextElementSibling?.classList.contains("ma-here")) claim.nextElementSibling.remove()
    if (!claim || !state) return
    const sign = { "holds here": "✓", "fails here": "✗" }[state] ?? "–"
    const made = element("span", { className: `ma-here ${state.split(" ")[0]}` }, `${sign} ${state}`)
    made.dataset.claim = id
    claim.after(made)
    if (why) this.told.append(element("li", {}, element("a", { href: `#${id}` }, claim.textContent), ` ${why}`))
  }

  // Cells that wait, wait no longer.
  drop() {
    for (const cell of this.queue) cell.say("")
    this.queue = []
    this.fresh = false
  }

  // The kernel is gone, with all that cells left in it.
  lost(why = "") {
    this.kernel?.end(why)
    this.kernel = null
    for (const cell of this.cells) cell.forget()
    for (const claim of this.claims) this.mark(claim, "")
    this.told.replaceChildren()
  }

  async interrupt() {
    this.drop()
    if (this.kernel?.running) await this.kernel.interrupt().catch((error) => this.say(error.message))
    else this.stop("Nothing runs.")
  }

  reset() {
    this.drop()
    this.stop("")
    this.lost("Reset.")
    for (const cell of this.cells) cell.reset()
    this.say("The page’s own code again; the next run starts afresh.")
  }

  stop(text) {
    this.busy?.abort()
    this.busy = null
    if (text) this.say(text)
  }
}

// The generated cells that assert the claims, with the recorded values that each needs.
function checks(notebook) {
  const about = notebook.cells.map((cell) => ({ ...cell.metadata.measured, code: [cell.source].flat().join("") }))
  const values = new Set(about.filter((each) => each.check === "value").map((each) => each.name))
  return about
    .filter((each) => each.check === "claim")
    .map(({ name: id, code }) => ({
      id,
      code,
      names: (code.match(/\b[a-z]\w*/g) ?? []).filter((each) => values.has(each)),
      needs: (code.match(/needs='([^']*)'/)?.[1] ?? "").split(" ").filter(Boolean),
    }))
}

async function begin() {
  const foot = document.querySelector(".ma-recorded")
  const book = foot?.querySelector("a[href$='.ipynb']")
  if (!book) return
  const hint = [...foot.children].find((each) => each.localName === "p")
  const highlights = [...document.querySelectorAll(".md-content__inner > .language-python.highlight")]
  try {
    if (!token) throw new Error("Cells run here: open the link that `measured serve` shows.")
    await ask("GET", "status").catch(() => {
      sessionStorage.removeItem(KEY)
      throw new Error("The Jupyter Server of this link has ended: open the link that `measured serve` shows.")
    })
    const notebook = await (await fetch(book.href)).json()
    const recorded = notebook.cells.filter(({ metadata }) => metadata.measured?.fence)
    if (recorded.length !== highlights.length) throw new Error("This page has changed since it was recorded: record it, then run it.")
    new LivePage(highlights, notebook)
    hint?.remove()
  } catch (error) {
    if (hint) hint.textContent = error.message
  }
}

begin()
