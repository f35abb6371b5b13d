// Back-pressure: a page that cannot draw in time asks the gateway for fewer frames of each code (`max_rate_ms`).
//
// The gateway sees how late a browser's library reads, and not how late this page is. So the page looks at itself: the
// frames of the screen come too late when the records between two of them take too long.

const STEPS = [0, 100, 250, 500, 1000];
// Milliseconds between two frames of the screen that are too many, and few enough.
const LATE = 80;
const GOOD = 30;
// Frames of the screen, one after the other, after which the pace changes.
const SLOWER_AFTER = 25;
const FASTER_AFTER = 900;

export class Pace {
    /** Call `change` when the pace has changed, so that the subscriptions are made anew. */
    constructor(change) {
        this.change = change;
        this.step = navigator.connection?.saveData ? 3 : 0;
        this.late = 0;
        this.good = 0;
        this.seen = 0;
        this.asked = false;
        this.look = this.look.bind(this);
    }

    get ms() {
        return STEPS[this.step];
    }

    /** Note that records came. */
    busy() {
        if (this.asked) return;
        this.asked = true;
        requestAnimationFrame(this.look);
    }

    look(now) {
        this.asked = false;
        const between = now - this.seen;
        this.seen = now;
        // A page that was hidden, or had no records, has not been late.
        if (between > 2000) return;
        this.late = between > LATE ? this.late + 1 : 0;
        this.good = between < GOOD ? this.good + 1 : 0;
        if (this.late >= SLOWER_AFTER && this.step < STEPS.length - 1) this.go(this.step + 1);
        else if (this.good >= FASTER_AFTER && this.step > 0) this.go(this.step - 1);
    }

    go(step) {
        this.step = step;
        this.late = this.good = 0;
        this.change();
    }
}
