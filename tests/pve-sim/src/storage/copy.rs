//! Copies of images: qemu-img does them, its progress goes to the log as PVE's.

use std::{
    fs,
    io::{self, BufReader, Read},
    os::unix::fs::MetadataExt,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use super::{
    Log,
    image::{Place, QEMU_IMG, info},
};
use crate::api::Failure;

/// How often PVE asks QEMU how far a mirror is.
const MIRROR_LOOK: Duration = Duration::from_secs(1);

/// A copy to be made.
pub(super) struct Copy<'a> {
    pub(super) from: &'a Path,
    pub(super) from_format: &'a str,
    pub(super) snapshot: Option<&'a str>,
    pub(super) to: &'a Path,
    pub(super) to_format: &'a str,
    /// KiB a second.
    pub(super) rate_kib: Option<u64>,
    /// Bytes left on the target; none: enough.
    pub(super) room: Option<u64>,
}

impl Copy<'_> {
    fn size(&self) -> io::Result<u64> {
        Ok(info(self.from, self.from_format)?.size)
    }

    /// How far the target's room reaches, in bytes and as a part of the whole, when it is too small.
    #[expect(clippy::cast_precision_loss, reason = "shown with two decimals")]
    fn too_far(&self) -> io::Result<Option<(u64, f64)>> {
        let Some(room) = self.room.filter(|room| fs::metadata(self.from).is_ok_and(|meta| *room < meta.blocks() * 512)) else {
            return Ok(None);
        };
        Ok(Some((room, (room as f64 / self.size()?.max(1) as f64).min(1.0))))
    }

    /// Lets qemu-img copy; gives the lines that it complains in when it fails.
    fn run(&self, place: &Place<'_>, progress: &mut dyn FnMut(f64)) -> io::Result<Result<(), Vec<String>>> {
        let mut command = Command::new(QEMU_IMG);
        // PVE's QEMU has a `zeroinit:` protocol, which tells that the target reads as zeroes. Elsewhere an option says it.
        command.args(["convert", "--target-is-zero", "-p", "-n", "-f", self.from_format, "-O", self.to_format]);
        if let Some(name) = self.snapshot {
            command.arg("-l").arg(format!("snapshot.name={name}"));
        }
        if let Some(rate) = self.rate_kib {
            command.args(["-r", &format!("{rate}K")]);
        }
        command.arg(self.from).arg(self.to).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        if let Some(output) = child.stdout.take() {
            follow(output, progress)?;
        }
        let done = child.wait_with_output()?;
        Ok(if done.status.success() { Ok(()) } else { Err(place.lines(&done.stderr)) })
    }
}

impl Place<'_> {
    /// Copies an image into one that exists, with progress in the log.
    pub(super) fn copy(&self, copy: &Copy<'_>, log: Log<'_>) -> Result<(), Failure> {
        let (from_shown, to_shown) = (self.shown(copy.from), self.shown(copy.to));
        let snapshot = copy.snapshot.map(|name| format!("-l snapshot.name={name} ")).unwrap_or_default();
        let rate = copy.rate_kib.map(|rate| format!("-r {rate}K ")).unwrap_or_default();
        let failed = Failure::die(format!(
            "copy failed: command '{QEMU_IMG} convert -p -n {rate}{snapshot}-f {} -O {} {from_shown} zeroinit:{to_shown}' failed: exit code 1",
            copy.from_format, copy.to_format
        ));
        let total = copy.size()?;
        log(&progress(0.0, total));
        if let Some((room, part)) = copy.too_far()? {
            log(&progress(part, total));
            log(&format!("qemu-img: error while writing at byte {room}: No space left on device"));
            return Err(failed);
        }
        let mut told = 0.0;
        let done = copy.run(self, &mut |part| {
            log(&progress(part, total));
            told = part;
        })?;
        if let Err(lines) = done {
            lines.iter().for_each(|line| log(line));
            return Err(failed);
        }
        if told < 1.0 {
            log(&progress(1.0, total));
        }
        Ok(())
    }

    /// Copies a running VM's disk as its QEMU mirrors it.
    pub(super) fn mirror(&self, copy: &Copy<'_>, job: &str, log: Log<'_>) -> Result<(), Failure> {
        let begin = Instant::now();
        let total = copy.size()?;
        let tell = |part: f64, end: &str| log(&format!("{job}: {} in {}{end}", progress(part, total), duration(begin.elapsed())));
        tell(0.0, "");
        let failed = |why: &str| {
            log(&format!("{job}: Cancelling block job"));
            log(&format!("{job}: Done."));
            Failure::die(format!("block job (mirror) error: {why}"))
        };
        if let Some((_, part)) = copy.too_far()? {
            tell(part, "");
            return Err(failed(&format!("{job}: No space left on device (io-status: ok)")));
        }
        let mut next = begin + MIRROR_LOOK;
        let done = copy.run(self, &mut |part| {
            if Instant::now() >= next {
                next = Instant::now() + MIRROR_LOOK;
                tell(part, "");
            }
        })?;
        if let Err(lines) = done {
            let why = lines.last().map_or("it was ended", |line| line.as_str());
            return Err(failed(&format!("{job}: {why} (io-status: ok)")));
        }
        tell(1.0, ", ready");
        log("all 'mirror' jobs are ready");
        log(&format!("{job}: Completing block job..."));
        log(&format!("{job}: Completed successfully."));
        log(&format!("{job}: mirror-job finished"));
        Ok(())
    }
}

/// Reads qemu-img's `(12.34/100%)` and tells each whole percent as a part of one.
fn follow(output: impl Read, progress: &mut dyn FnMut(f64)) -> io::Result<()> {
    let mut text = String::new();
    let mut told = 0.0;
    for byte in BufReader::new(output).bytes() {
        let byte = byte?;
        if byte != b'\r' && byte != b'\n' {
            text.push(char::from(byte));
            continue;
        }
        let percent = text.trim().strip_prefix('(').and_then(|t| t.split_once('/')).and_then(|(p, _)| p.parse::<f64>().ok());
        if let Some(percent) = percent
            && percent >= told + 1.0
        {
            progress(percent / 100.0);
            told = percent;
        }
        text.clear();
    }
    Ok(())
}

fn progress(part: f64, total: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
    let total = total as f64;
    format!("transferred {} of {} ({:.2}%)", human(total * part), human(total), part * 100.0)
}

fn human(bytes: f64) -> String {
    let mut value = bytes;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return format!("{value:.1} {unit}");
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

/// `1h 2m 3s`.
fn duration(time: Duration) -> String {
    let seconds = time.as_secs();
    let units = [(seconds / 3600, "h"), (seconds / 60 % 60, "m"), (seconds % 60, "s")];
    let text: Vec<String> = units.iter().filter(|(count, _)| *count > 0).map(|(count, unit)| format!("{count}{unit}")).collect();
    if text.is_empty() { String::from("0s") } else { text.join(" ") }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn progress_is_told_once_for_each_percent() {
        let mut parts = Vec::new();
        follow(&b"    (0.00/100%)\r    (50.00/100%)\r    (50.10/100%)\r    (100.00/100%)\n"[..], &mut |part| parts.push(part)).unwrap();
        assert_eq!(parts, [0.5, 1.0]);
        assert_eq!(progress(0.5, 64 << 20), "transferred 32.0 MiB of 64.0 MiB (50.00%)");
    }

    #[test]
    fn times_are_told_without_empty_units() {
        for (seconds, text) in [(0, "0s"), (59, "59s"), (60, "1m"), (3723, "1h 2m 3s")] {
            assert_eq!(duration(Duration::from_secs(seconds)), text);
        }
    }
}
