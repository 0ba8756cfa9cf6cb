//! How long the parts of a change took, for its line in the log.

use std::{
    fmt,
    time::{Duration, Instant},
};

/// The parts of a change so far.
#[derive(Debug)]
pub(super) struct Laps {
    begun: Instant,
    last: Instant,
    ended: Vec<(&'static str, Duration)>,
}

impl Laps {
    /// The first part begins now.
    pub(super) fn begin() -> Self {
        let now = Instant::now();
        Self { begun: now, last: now, ended: Vec::new() }
    }

    /// A part ends, and the next begins.
    pub(super) fn end(&mut self, part: &'static str) {
        let now = Instant::now();
        self.ended.push((part, now - self.last));
        self.last = now;
    }
}

impl fmt::Display for Laps {
    /// "12.3 ms: lock 0.2, steps 9.1".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        write!(f, "{:.1} ms:", ms(self.last - self.begun))?;
        for (i, (part, took)) in self.ended.iter().enumerate() {
            write!(f, "{} {part} {:.1}", if i == 0 { "" } else { ";" }, ms(*took))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_add_up_to_the_whole() {
        let begun = Instant::now();
        let parts = [("lock", 250), ("steps", 9_000)].map(|(part, micros)| (part, Duration::from_micros(micros)));
        let laps = Laps { begun, last: begun + Duration::from_micros(9_250), ended: parts.to_vec() };
        assert_eq!(laps.to_string(), "9.2 ms: lock 0.2; steps 9.0");
    }
}
