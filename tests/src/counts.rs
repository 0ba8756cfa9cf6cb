//! What tests have counted, for people: libtest shows nothing of a test that passes.

use std::{fs::File, io::Write as _};

/// The file to which tests write their lines, where it is named: several test programs write to one, and make prints it.
const FILE: &str = "PVELET_COUNTS";

/// Tells one line: `controller: 12 kills, ...`.
pub fn tell(line: &str) {
    println!("{line}");
    let Some(path) = std::env::var_os(FILE) else { return };
    // One write of a line: others write, too.
    let written = File::options().create(true).append(true).open(path).and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()));
    if let Err(error) = written {
        eprintln!("{FILE}: {error}");
    }
}
