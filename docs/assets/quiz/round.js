// Which card comes next: the twin of the rounds in measured/quiz.py.

const AGAIN = 1
export const RETURN_AFTER = 3 // cards between a miss and its return
export const NEW_A_ROUND = 20

export class Round {
  constructor(cards, until = null) {
    this.queue = [...cards]
    this.until = until
    this.right = []
    this.missed = new Map() // page → misses
    this.last = []
  }

  next(now) {
    return this.until && now >= this.until ? undefined : this.queue.shift()
  }

  answered(card, rating) {
    this.last.push([card, rating])
    if (rating === AGAIN) {
      this.missed.set(card.page, (this.missed.get(card.page) ?? 0) + 1)
      this.queue.splice(RETURN_AFTER, 0, card)
    } else this.right.push(card)
  }

  // Ask the last card again, then the current one. Says whether there was a last one.
  undo(current) {
    if (current) this.queue.unshift(current)
    if (!this.last.length) return false
    const [card, rating] = this.last.pop()
    if (rating === AGAIN) {
      this.queue.splice(this.queue.indexOf(card), 1)
      const left = this.missed.get(card.page) - 1
      if (left) this.missed.set(card.page, left)
      else this.missed.delete(card.page)
    } else this.right.splice(this.right.indexOf(card), 1)
    this.queue.unshift(card)
    return true
  }

  reread() {
    return [...this.missed].sort((a, b) => b[1] - a[1]).map(([page]) => page)
  }
}

export const tonight = (cards, minutes, now) => new Round(cards, new Date(now.getTime() + minutes * 60_000))

export function untilItSits(cards, state, now) {
  const due = cards.filter((card) => state.due(card.id) && state.due(card.id) <= now)
  due.sort((a, b) => state.due(a.id) - state.due(b.id))
  const fresh = cards.filter((card) => !state.due(card.id))
  return new Round([...due, ...fresh.slice(0, Math.max(0, NEW_A_ROUND - due.length))])
}

// Cards that come back on each of the next days, from today.
export function forecast(cards, state, now, days = 7) {
  const counts = Array(days).fill(0)
  const midnight = (date) => new Date(date.getFullYear(), date.getMonth(), date.getDate())
  for (const card of cards) {
    const due = state.due(card.id)
    if (!due) continue
    const day = Math.max(0, Math.round((midnight(due) - midnight(now)) / 86_400_000))
    if (day < days) counts[day] += 1
  }
  return counts
}
