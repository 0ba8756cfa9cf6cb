//! Units of systemd: the one in which the steps run, and the timer that undoes a change without the agent.

use std::{ffi::OsString, path::Path, time::Duration};

use super::{command, failed};
use crate::error::Error;

/// The transient unit of the steps.
const STEPS: &str = "pvelet-network-steps.service";
/// The dead man's switch.
const TIMER: &str = "pvelet-network-deadline.timer";
/// What undoes a change after a reboot.
const BOOT: &str = "pvelet-network-boot.service";
/// systemd answers at once, or something is badly wrong.
const ANSWER: Duration = Duration::from_secs(20);
/// A stopped unit is killed after this: nothing in it has anything to tidy up.
const STOP: Duration = Duration::from_secs(2);
/// What systemd itself may take around the steps.
const AROUND: Duration = Duration::from_secs(5);

fn args(list: &[&str]) -> Vec<OsString> {
    list.iter().map(OsString::from).collect()
}

async fn systemctl(list: &[&str]) -> Result<command::Ended, Error> {
    command::run("systemctl", &args(list), ANSWER).await
}

/// Starts the timer, and looks whether it runs. The other half of the switch must be there too: a timer does not outlive a reboot.
pub(super) async fn arm() -> Result<(), Error> {
    let enabled = systemctl(&["is-enabled", BOOT]).await?.stdout;
    if !enabled.trim().starts_with("enabled") {
        return Err(failed(format!("{BOOT} is not enabled ('{}'): `systemctl enable {BOOT}`", enabled.trim())));
    }
    systemctl(&["start", TIMER]).await?.success(&format!("{TIMER} cannot be started"))?;
    let state = systemctl(&["is-active", TIMER]).await?;
    if state.stdout.trim() == "active" { Ok(()) } else { Err(failed(format!("{TIMER} is {} after it was started", state.stdout.trim()))) }
}

/// Stops the timer.
pub(super) async fn disarm() -> Result<(), Error> {
    systemctl(&["stop", TIMER]).await?.success(&format!("{TIMER} cannot be stopped")).map(drop)
}

/// Runs a program in the transient unit and waits for its end. What it writes goes to `log`.
pub(super) async fn run(argv: &[OsString], log: &Path, patience: Duration) -> Result<(), Error> {
    let mut line = args(&["--quiet", "--collect", "--wait", "--service-type=exec", "--property=KillMode=control-group"]);
    line.push(format!("--unit={STEPS}").into());
    line.push("--description=Interfaces of a network change of pvelet".into());
    line.push(format!("--property=RuntimeMaxSec={}ms", patience.as_millis()).into());
    line.push(format!("--property=TimeoutStopSec={}s", STOP.as_secs()).into());
    line.push(property("StandardOutput=truncate:", log));
    line.push(property("StandardError=append:", log));
    line.push("--".into());
    line.extend_from_slice(argv);
    let ended = command::run("systemd-run", &line, patience + STOP + AROUND).await?;
    match ended.code {
        Some(0) => Ok(()),
        _ => Err(failed(ended.complaint())),
    }
}

fn property(name: &str, path: &Path) -> OsString {
    let mut text = OsString::from(format!("--property={name}"));
    text.push(path);
    text
}

/// Ends the transient unit and what runs in it. No such unit: a success.
pub(super) async fn stop() -> Result<(), Error> {
    let ended = systemctl(&["stop", STEPS]).await?;
    // 5: there is no such unit.
    if ended.code == Some(5) {
        return Ok(());
    }
    ended.success(&format!("{STEPS} cannot be stopped"))?;
    // What failed and was not collected keeps its name; where there is nothing to reset, that is told as a failure.
    let _ = systemctl(&["reset-failed", STEPS]).await;
    Ok(())
}
