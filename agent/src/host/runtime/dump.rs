//! What containerd itself makes of a configuration.

use std::{io, path::Path, process::Stdio, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::Command,
};

use super::trouble;
use crate::error::{Error, Trouble};

/// The most that is read of what it prints; a whole configuration has about 10 KiB.
const MOST: u64 = 4 << 20;

/// A file that is tried by a copy of it.
pub(super) struct Tried<'a> {
    /// The copy.
    pub(super) copy: &'a Path,
    /// How it is called in what is told.
    pub(super) file: &'a Path,
    /// What it holds.
    pub(super) text: &'a str,
}

/// Asks `containerd config dump`. The first one that is tried is the main file.
///
/// That it ends with 0 is not enough: 1.6 does so, and ignores most of a file, when that is of a later version than it knows. So what it
/// printed has to be a configuration, of no lower version than the text.
///
/// # Errors
/// `Look`: `Missing` without the program, `Silent` when it takes too long, `Failed` with what it says of the text, or that it was killed, `Garbled` when it printed no
/// configuration.
pub(super) async fn dump(program: &Path, tried: &[Tried<'_>], patience: Duration) -> Result<String, Error> {
    let look = |trouble, message: String| Error::Look { trouble, message };
    let copy = tried.first().map_or(Path::new(""), |main| main.copy);
    let (status, printed, said) = tokio::time::timeout(patience, run(program, copy))
        .await
        .map_err(|_| look(Trouble::Silent, format!("{} config dump did not end within {} ms", program.display(), patience.as_millis())))?
        .map_err(|e| {
            let (trouble, message) = trouble::of_io(&e);
            look(trouble, format!("{}: {message}", program.display()))
        })?;
    let said = called(complaint(&said), tried);
    if status.code().is_none() {
        // Whatever it had said until then.
        return Err(look(Trouble::Failed, format!("containerd config dump was killed ({status})")));
    }
    if !status.success() {
        return Err(look(Trouble::Failed, if said.is_empty() { format!("containerd config dump ended with {status}") } else { said }));
    }
    let whole = printed.parse::<toml::Table>().ok().filter(|t| t.contains_key("version") && t.contains_key("plugins"));
    let Some(whole) = whole else {
        return Err(look(Trouble::Garbled, format!("containerd config dump printed no configuration; it said: {said}")));
    };
    let version = |table: &toml::Table| table.get("version").and_then(toml::Value::as_integer).unwrap_or(1);
    let known = version(&whole);
    for Tried { file, text, .. } in tried {
        let wanted = text.parse::<toml::Table>().map_or(1, |t| version(&t));
        if wanted <= known {
            continue;
        }
        let message = format!(
            "{}: has version {wanted}, but this containerd knows none above {known} and ignores what it does not know",
            file.display()
        );
        return Err(look(Trouble::Failed, message));
    }
    Ok(printed)
}

#[allow(clippy::disallowed_methods, reason = "the one place that starts containerd's program")]
async fn run(program: &Path, config: &Path) -> io::Result<(std::process::ExitStatus, String, String)> {
    let mut command = Command::new(program);
    command.arg("--config").arg(config).args(["config", "dump"]);
    // As a unit has it: relative patterns of imports are meant from there on by 1.6.
    command.current_dir("/").env_remove("NOTIFY_SOCKET").env("LC_ALL", "C.UTF-8");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn()?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (printed, said, status) = tokio::join!(text(stdout), text(stderr), child.wait());
    Ok((status?, printed?, said?))
}

/// All of a pipe up to [`MOST`]; the rest is read and thrown away, so that the program ends.
async fn text(pipe: Option<impl AsyncRead + Unpin>) -> io::Result<String> {
    let Some(mut pipe) = pipe else { return Ok(String::new()) };
    let mut kept = Vec::new();
    (&mut pipe).take(MOST).read_to_end(&mut kept).await?;
    tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await?;
    Ok(String::from_utf8_lossy(&kept).into_owned())
}

/// What was said, with the files instead of their copies.
fn called(mut said: String, tried: &[Tried<'_>]) -> String {
    let mut names: Vec<(String, String)> =
        tried.iter().map(|t| (t.copy.to_string_lossy().into_owned(), t.file.to_string_lossy().into_owned())).collect();
    // One name may be the beginning of another.
    names.sort_by_key(|(copy, _)| std::cmp::Reverse(copy.len()));
    for (copy, file) in names {
        said = said.replace(&copy, &file);
    }
    said
}

/// The line that says why, without those of the log before it.
fn complaint(said: &str) -> String {
    let lines: Vec<&str> = said.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    let why = lines.iter().rev().find_map(|l| l.strip_prefix("containerd: "));
    why.or(lines.last().copied()).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[tokio::test]
    async fn only_an_exit_status_is_a_word_on_the_text() {
        let folder = tempfile::tempdir().unwrap();
        let (program, config) = (folder.path().join("program"), folder.path().join("config.toml"));
        let cases = [("exit 1", "unknown word"), ("kill -KILL $$", "containerd config dump was killed (signal: 9 (SIGKILL))")];
        for (end, wanted) in cases {
            std::fs::write(&program, format!("#!/bin/sh\necho 'containerd: unknown word' >&2; {end}\n")).unwrap();
            std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
            let tried = [Tried { copy: &config, file: &config, text: "" }];
            let error = dump(&program, &tried, Duration::from_secs(60)).await.unwrap_err();
            assert_eq!(error, Error::Look { trouble: Trouble::Failed, message: wanted.to_owned() });
        }
    }
}
