//! ifupdown2: how its programs are called. What they say by their exit status is passed on; whoever calls looks at the kernel.

use std::{
    ffi::OsString,
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    io::Write,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use super::{Action, NetPaths, Step, command, failed, units};
use crate::{error::Error, host::units::SystemdUnits};

/// A comparison takes a second on a slow host.
pub(super) const READING: Duration = Duration::from_secs(30);
/// A check of a text does too, but goes on beside all else that begins a change, on a host that may have just booted.
const CHECKING: Duration = Duration::from_secs(60);
/// What ifupdown2 ends with at once while another one of it runs.
const BUSY: i32 = 89;
const BUSY_PAUSE: Duration = Duration::from_secs(1);
/// Where ifupdown2 has its lock.
const LOCKS: &str = "/run/network";
/// What ifupdown2's verdict on a text depends on, beside the text.
const JUDGES: [&str; 8] = [
    "/usr/share/ifupdown2",
    "/usr/share/ifupdown2/__main__.py",
    "/usr/share/ifupdown2/addons",
    "/etc/network/ifupdown2",
    "/etc/network/ifupdown2/ifupdown2.conf",
    "/etc/network/ifupdown2/addons.conf",
    "/etc/network/ifupdown2/policy.d",
    "/var/lib/ifupdown2/policy.d",
];

/// Runs its arguments: a word that says what is done ("up", "down"), how many interfaces, the interfaces; and so on. All of them are run,
/// whatever became of the first; the status is that of the last that failed. While another ifupdown2 runs (89), such as somebody's `ifreload`,
/// it is tried again: whoever started the script ends it.
const SCRIPT: &str = r#"
try() {
    while :; do
        "$@"
        tried=$?
        [ "$tried" -eq 89 ] || return "$tried"
        sleep 1
    done
}
status=0
file=$1
shift
while [ $# -ge 3 ]; do
    verb=$1; shift
    count=$1; shift
    line=
    while [ "$count" -gt 0 ]; do line="$line $1"; shift; count=$((count - 1)); done
    # Without -u it goes by what it remembers of the ifup.
    how=
    [ "$verb" = down ] && how=-u
    echo "if$verb$line"
    if [ -n "$file" ]; then try "if$verb" $how -i "$file" $line || status=$?; else try "if$verb" $how $line || status=$?; fi
done
exit $status
"#;

/// The words for [`SCRIPT`]: neighbours with the same verb are one call, since each start of ifupdown2 takes half a second.
fn words(steps: &[Step]) -> Vec<OsString> {
    let verb = |step: &Step| if step.action == Action::Down { "down" } else { "up" };
    let mut words = Vec::new();
    for group in steps.chunk_by(|a, b| verb(a) == verb(b)) {
        words.push(group.first().map_or("up", verb).into());
        words.push(group.len().to_string().into());
        words.extend(group.iter().map(|s| OsString::from(&s.interface)));
    }
    words
}

/// Names as the kernel has them; anything else could be read as an option or as several words.
pub(super) fn check_names<'a>(names: impl IntoIterator<Item = &'a String>) -> Result<(), Error> {
    for name in names {
        let good = !name.is_empty()
            && name.len() <= 15
            && name.starts_with(|c: char| c.is_ascii_alphanumeric())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
        if !good {
            return Err(Error::Internal(format!("'{}' is no interface's name", name.escape_debug())));
        }
    }
    Ok(())
}

/// In memory, where there is room: the disk may be full.
pub(super) fn scratch_folder(paths: &NetPaths) -> &Path {
    let folder = [Path::new("/run/pvelet"), paths.state.as_path()].into_iter().find(|f| fs::create_dir_all(f).is_ok());
    folder.unwrap_or(&paths.state)
}

/// A file that ifupdown2 reads; removed when dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new(paths: &NetPaths, name: &str, text: &str) -> Result<Self, Error> {
        let path = scratch_folder(paths).join(name);
        let write = || {
            let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
            file.write_all(text.as_bytes())
        };
        write().map_err(|e| failed(format!("{}: {e}", path.display())))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Runs steps in the transient unit; returns what the tools wrote.
pub(super) async fn run_steps(
    paths: &NetPaths,
    bus: Option<&SystemdUnits>,
    steps: &[Step],
    file: Option<&str>,
    patience: Duration,
) -> Result<String, Error> {
    check_names(steps.iter().map(|s| &s.interface))?;
    let scratch = file.map(|text| Scratch::new(paths, "steps.interfaces", text)).transpose()?;
    let mut argv: Vec<OsString> = ["/bin/sh", "-c", SCRIPT, "steps"].map(OsString::from).to_vec();
    argv.push(scratch.as_ref().map(|s| s.0.clone().into_os_string()).unwrap_or_default());
    argv.extend(words(steps));
    fs::create_dir_all(&paths.state).map_err(|e| failed(format!("{}: {e}", paths.state.display())))?;
    let log = paths.state.join("steps.log");
    let result = units::run(bus, &argv, &log, patience).await;
    let said = tail(&log);
    match result {
        Ok(()) => Ok(said),
        Err(error) => {
            let last = command::last_lines(&said);
            Err(failed(if last.is_empty() { error.to_string() } else { format!("{last} ({error})") }))
        }
    }
}

fn tail(log: &Path) -> String {
    const KEPT: usize = 16 << 10;
    let bytes = fs::read(log).unwrap_or_default();
    String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(KEPT)..]).into_owned()
}

/// Whether a text is one that ifupdown2 takes, asked where nobody notices: ifupdown2's own lock is not taken, for which somebody's `ifreload`
/// would be turned away. `None`: that cannot be told here, or not so.
pub(super) async fn check_aside(paths: &NetPaths, bus: &SystemdUnits, text: &str) -> Option<Result<(), Error>> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    let scratch = Scratch::new(paths, &format!("check-{next}.interfaces"), text).ok()?;
    let log = Scratch::new(paths, &format!("check-{next}.log"), "").ok()?;
    let mut argv: Vec<String> = ["/bin/sh", "-c", "exec ifup -s -a -i \"$1\"", "check"].map(str::to_owned).to_vec();
    argv.push(scratch.0.to_str()?.to_owned());
    let looked = units::look_aside(bus, (&argv, LOCKS, log.0.to_str()?), CHECKING).await;
    match looked {
        Ok(result) if result == "done" => Some(verdict(&tail(&log.0))),
        // Nor does it say that it is wrong: it was killed, or could not be started so.
        other => {
            tracing::debug!(?other, "a declaration was not checked aside");
            None
        }
    }
}

/// What ifupdown2 makes of a text, from what it says. It complains about what it does not understand with a status of 0, too; and ends with 1
/// for a mere warning, such as that a bridge has the MTU of its ports anyway, or that a VLAN's is above its parent's, which stands in another
/// file.
fn verdict(said: &str) -> Result<(), Error> {
    if !said.contains("error:") {
        return Ok(());
    }
    Err(failed(format!("ifupdown2 does not take what was to be declared: {}", command::last_lines(said))))
}

/// What changes whenever ifupdown2 or its settings do: a verdict holds as long.
pub(super) fn mark() -> u64 {
    let mut hasher = DefaultHasher::new();
    for path in JUDGES {
        let stat = fs::metadata(path).ok().map(|m| (m.ino(), m.mtime(), m.mtime_nsec(), m.len()));
        stat.hash(&mut hasher);
    }
    hasher.finish()
}

/// Whether a text is one that ifupdown2 takes.
pub(super) async fn check_text(paths: &NetPaths, text: &str) -> Result<(), Error> {
    let scratch = Scratch::new(paths, "check.interfaces", text)?;
    let mut args: Vec<OsString> = ["-s", "-a", "-i"].map(OsString::from).to_vec();
    args.push(scratch.0.clone().into_os_string());
    let end = Instant::now() + CHECKING;
    let ended = loop {
        let ended = command::run("ifup", &args, CHECKING).await?;
        if ended.code != Some(BUSY) || Instant::now() >= end {
            break ended;
        }
        tokio::time::sleep(BUSY_PAUSE).await;
    };
    if matches!(ended.code, Some(0 | 1)) {
        return verdict(&ended.stderr);
    }
    Err(failed(format!("ifupdown2 does not take what was to be declared: {}", ended.complaint())))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn step(action: Action, interface: &str) -> Step {
        Step { action, interface: interface.to_owned() }
    }

    #[test]
    fn neighbours_with_the_same_verb_are_one_call() {
        let steps = [step(Action::Down, "a"), step(Action::Up, "b"), step(Action::Change, "c"), step(Action::Down, "d")];
        assert_eq!(words(&steps), ["down", "1", "a", "up", "2", "b", "c", "down", "1", "d"]);
    }

    #[test]
    #[allow(clippy::disallowed_methods, reason = "the script is tried with programs that only say how they were called")]
    fn the_script_runs_every_step_and_passes_a_failure_on() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        for (name, status) in [("ifup", 0), ("ifdown", 7)] {
            let path = dir.path().join(name);
            fs::write(&path, format!("#!/bin/sh\necho \"called {name} $*\"\nexit {status}\n")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let run = |file: &str| {
            let words = words(&[step(Action::Down, "a"), step(Action::Up, "b"), step(Action::Up, "c")]);
            let path = format!("{}:/usr/bin:/bin", dir.path().display());
            let mut command = std::process::Command::new("/bin/sh");
            let out = command.env("PATH", path).args(["-c", SCRIPT, "steps", file]).args(words).output().unwrap();
            (String::from_utf8(out.stdout).unwrap(), out.status.code())
        };
        assert_eq!(run(""), ("ifdown a\ncalled ifdown -u a\nifup b c\ncalled ifup b c\n".into(), Some(7)));
        assert_eq!(run("/f").0, "ifdown a\ncalled ifdown -u -i /f a\nifup b c\ncalled ifup -i /f b c\n");
    }

    #[test]
    #[allow(clippy::disallowed_methods, reason = "the script is tried with a program that only says how it was called")]
    fn the_script_waits_for_another_ifupdown2() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let script = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        };
        script("ifup", "#!/bin/sh\n[ -e \"$0.ran\" ] || { : >\"$0.ran\"; exit 89; }\necho \"called ifup $*\"\n");
        script("sleep", "#!/bin/sh\necho slept\n");
        let path = format!("{}:/usr/bin:/bin", dir.path().display());
        let mut command = std::process::Command::new("/bin/sh");
        let out = command.env("PATH", path).args(["-c", SCRIPT, "steps", ""]).args(words(&[step(Action::Up, "b")])).output().unwrap();
        assert_eq!((String::from_utf8(out.stdout).unwrap().as_str(), out.status.code()), ("ifup b\nslept\ncalled ifup b\n", Some(0)));
    }

    #[test]
    fn no_option_and_no_second_word_passes_as_a_name() {
        for bad in ["", "-a", "a b", "a;b", "$(x)", "sixteen-bytes-xx", "a/b"] {
            assert!(check_names([&bad.to_owned()]).is_err(), "{bad}");
        }
        check_names([&"bond0.70".to_owned(), &"vmbr_x-1".to_owned()]).unwrap();
    }

    #[test]
    fn a_warning_refuses_no_text_and_an_error_does() {
        verdict("warning: vmbr70: bridge inherits mtu from its ports\n").unwrap();
        let error = verdict("info: x\nerror: /f: line 3: iface a: invalid syntax 'b'\n").unwrap_err().to_string();
        assert!(error.contains("does not take") && error.contains("line 3"), "{error}");
    }
}
