//! Whether there is memory for blanks. Runs in the worker; pure.
//!
//! ```text
//!          in use ≥ 85 % of the pool, or the machine has < 5 % available
//!   Room ──────────────────────────────────────────────────────────────▶ Pressed
//!   refills  ◀────────────────────────────────────────────────────────── no refills, and
//!          in use < 75 % of the pool, and the machine has ≥ 8 % available  blanks go, a quarter
//!                                                                          a look
//! ```
//!
//! Between the marks nothing that is there goes and nothing new comes: refills that
//! went on up to the mark where blanks are given up would be forks for nothing. Blanks
//! are the first to go: idle instances have their own reasons and their own time.

use std::fmt;

/// From this share of the pool in use blanks are given up …
const PRESSED_PERCENT: u64 = 85;
/// … down to this one, below which they are made again.
const ROOM_PERCENT: u64 = 75;
/// With less than this share of the machine's memory available blanks are given up …
const SCARCE_PERCENT: u64 = 5;
/// … up to this one.
const AMPLE_PERCENT: u64 = 8;

/// What of the machine is not ours where `mem_pool_mb` says nothing, in MiB, and the least
/// that is: OpenLambda's numbers.
const OTHERS_MIB: u64 = 500;

const MIB: u64 = 1 << 20;

/// The memory at one moment, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// What all sandboxes together may use.
    pub pool: u64,
    /// What they do use.
    pub in_use: u64,
    /// The machine's.
    pub total: u64,
    pub available: u64,
}

/// What follows from a reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Blanks may be made.
    Room,
    /// None is made, none goes.
    Held,
    /// Blanks go.
    Pressed,
}

/// Remembers what it must for its hysteresis.
#[derive(Debug, Default)]
pub struct Gauge {
    pressed: bool,
    last: Option<(Reading, Verdict)>,
}

impl Reading {
    fn judge(&self, was_pressed: bool) -> Verdict {
        let share = |part: u64, percent: u64, whole: u64| part * 100 >= percent * whole;
        let full = share(self.in_use, PRESSED_PERCENT, self.pool);
        let scarce = !share(self.available, SCARCE_PERCENT, self.total);
        let room = !share(self.in_use, ROOM_PERCENT, self.pool);
        let ample = share(self.available, AMPLE_PERCENT, self.total);
        match (full || scarce, room && ample) {
            (true, _) => Verdict::Pressed,
            (false, true) => Verdict::Room,
            (false, false) if was_pressed => Verdict::Pressed,
            (false, false) => Verdict::Held,
        }
    }
}

impl Gauge {
    pub fn judge(&mut self, reading: Reading) -> Verdict {
        let verdict = reading.judge(self.pressed);
        self.pressed = verdict == Verdict::Pressed;
        self.last = Some((reading, verdict));
        verdict
    }

    pub fn last(&self) -> Option<Verdict> {
        self.last.map(|(_, verdict)| verdict)
    }
}

impl fmt::Display for Gauge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((reading, verdict)) = &self.last else {
            return write!(f, "not looked at: no blank was wanted");
        };
        let Reading { pool, in_use, total, available } = reading;
        write!(f, "{} of {} MiB in use, ", in_use / MIB, pool / MIB)?;
        write!(f, "{} of the machine's {} MiB available: ", available / MIB, total / MIB)?;
        match verdict {
            Verdict::Room => write!(f, "room for blanks"),
            Verdict::Held => write!(f, "no room for more blanks"),
            Verdict::Pressed => write!(f, "pressed, blanks are given up"),
        }
    }
}

/// The pool in bytes: what is set, or all but a little of the machine's memory.
pub fn pool(set_mib: Option<u32>, total: u64) -> u64 {
    let default_mib = (total / MIB).saturating_sub(OTHERS_MIB).max(OTHERS_MIB);
    set_mib.map_or(default_mib, u64::from) * MIB
}

/// How many of so many blanks go at one look; the next one sees what it brought.
pub fn surplus(blanks: usize) -> usize {
    blanks.div_ceil(4)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(in_use: u64, available: u64) -> Reading {
        Reading { pool: 100 * MIB, in_use: in_use * MIB, total: 1000 * MIB, available: available * MIB }
    }

    #[test]
    fn blanks_go_from_the_high_mark_down_to_the_low_one_and_come_again_below_it() {
        let mut gauge = Gauge::default();
        let verdicts =
            [(70, Verdict::Room), (75, Verdict::Held), (84, Verdict::Held), (85, Verdict::Pressed)];
        for (in_use, verdict) in verdicts {
            assert_eq!(gauge.judge(reading(in_use, 500)), verdict, "{in_use}");
        }
        for (in_use, verdict) in [(80, Verdict::Pressed), (75, Verdict::Pressed), (74, Verdict::Room)] {
            assert_eq!(gauge.judge(reading(in_use, 500)), verdict, "{in_use}");
        }
    }

    #[test]
    fn a_machine_without_memory_is_pressure_however_little_is_ours() {
        let mut gauge = Gauge::default();
        for (available, verdict) in [
            (500, Verdict::Room),
            (79, Verdict::Held),
            (49, Verdict::Pressed),
            (79, Verdict::Pressed),
            (80, Verdict::Room),
        ] {
            assert_eq!(gauge.judge(reading(10, available)), verdict, "{available}");
        }
    }

    #[test]
    fn refills_and_releases_do_not_take_turns() {
        // A node that wants more than there is room for, each blank of 4 of 100 MiB.
        let (mut gauge, mut in_use, mut made, mut given_up) = (Gauge::default(), 40, 0, 0);
        for look in 0..200 {
            match gauge.judge(reading(in_use, 500)) {
                Verdict::Room => (in_use, made) = (in_use + 4, made + 1),
                Verdict::Held => {}
                Verdict::Pressed => (in_use, given_up) = (in_use - 4, given_up + 1),
            }
            // A function takes 10 MiB for good in the middle of it.
            in_use += if look == 100 { 10 } else { 0 };
        }
        assert!(made <= 10 && given_up <= 4, "{made} made, {given_up} given up");
    }

    #[test]
    fn the_pool_is_what_is_set_or_what_others_do_not_need() {
        assert_eq!(pool(Some(64), 4000 * MIB), 64 * MIB);
        assert_eq!(pool(None, 4000 * MIB), 3500 * MIB);
        assert_eq!(pool(None, 700 * MIB), 500 * MIB);
    }

    #[test]
    fn giving_up_reaches_the_last_blank() {
        let mut left = 100;
        let looks = (1..).find(|_| {
            left -= surplus(left);
            left == 0
        });
        assert!(looks.unwrap() < 20);
        assert_eq!(surplus(0), 0);
    }

    #[test]
    fn who_looks_is_told_the_numbers_and_what_follows() {
        let mut gauge = Gauge::default();
        assert!(gauge.to_string().contains("not looked at"));
        gauge.judge(reading(90, 500));
        assert_eq!(
            gauge.to_string(),
            "90 of 100 MiB in use, 500 of the machine's 1000 MiB available: pressed, blanks are given up"
        );
    }
}
