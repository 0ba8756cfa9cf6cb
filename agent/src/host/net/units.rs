//! Units of systemd: the one in which the steps run, and the timer that undoes a change without the agent.
//!
//! The agent asks systemd over the bus: each `systemctl` would be a process more. Where the bus does not answer, and in the command of the timer,
//! which must need as little as possible, the programs do it.

use std::{
    ffi::{OsStr, OsString},
    path::Path,
    time::{Duration, Instant},
};

use zbus::Variant;

use super::{command, failed};
use crate::{
    error::{Error, Trouble},
    host::units::{SystemdUnits, Units},
};

/// The transient unit of the steps.
const STEPS: &str = "pvelet-network-steps.service";
const DESCRIPTION: &str = "Interfaces of a network change of pvelet";
/// The one in which a declaration is checked. One name for all: of each the bus is asked to tell, and it keeps no more than a few hundred.
const CHECK: &str = "pvelet-network-check.service";
/// The dead man's switch.
const TIMER: &str = "pvelet-network-deadline.timer";
/// What undoes a change after a reboot.
const BOOT: &str = "pvelet-network-boot.service";
/// systemd answers at once, or something is badly wrong.
const ANSWER: Duration = Duration::from_secs(20);
/// A stopped unit is killed after this: nothing in it has anything to tidy up.
const STOP: Duration = Duration::from_secs(2);
/// How often, and how long apart, a unit is tried whose name is still taken.
const PUT_AWAY: u32 = 20;
const PUT_AWAY_PAUSE: Duration = Duration::from_millis(50);
/// What systemd itself may take around the steps.
const AROUND: Duration = Duration::from_secs(5);

fn args(list: &[&str]) -> Vec<OsString> {
    list.iter().map(OsString::from).collect()
}

async fn systemctl(list: &[&str]) -> Result<command::Ended, Error> {
    command::run("systemctl", &args(list), ANSWER).await
}

/// Whether this unit file is on, as `UnitFileState` and `systemctl is-enabled` say it.
fn must_be_enabled(state: &str) -> Result<(), Error> {
    if state.starts_with("enabled") {
        return Ok(());
    }
    Err(failed(format!("{BOOT} is not enabled ('{state}'): `systemctl enable {BOOT}`")))
}

fn must_run(state: &str) -> Result<(), Error> {
    if state == "active" { Ok(()) } else { Err(failed(format!("{TIMER} is {state} after it was started"))) }
}

/// Starts the timer, and looks whether it runs. The other half of the switch must be there too: a timer does not outlive a reboot.
pub(super) async fn arm(bus: Option<&SystemdUnits>) -> Result<(), Error> {
    if let Some(bus) = bus {
        let armed = async {
            must_be_enabled(&bus.state(BOOT).await?.enabled)?;
            bus.start(TIMER, ANSWER).await?;
            must_run(&bus.state(TIMER).await?.active)
        };
        match armed.await {
            Err(error @ Error::Look { .. }) => tracing::warn!(%error, "the timer is started by systemctl"),
            other => return other,
        }
    }
    must_be_enabled(systemctl(&["is-enabled", BOOT]).await?.stdout.trim())?;
    systemctl(&["start", TIMER]).await?.success(&format!("{TIMER} cannot be started"))?;
    must_run(systemctl(&["is-active", TIMER]).await?.stdout.trim())
}

/// Stops the timer.
pub(super) async fn disarm(bus: Option<&SystemdUnits>) -> Result<(), Error> {
    if let Some(bus) = bus {
        match bus.stop(TIMER, ANSWER).await {
            Err(error) => tracing::warn!(%error, "the timer is stopped by systemctl"),
            Ok(()) => return Ok(()),
        }
    }
    systemctl(&["stop", TIMER]).await?.success(&format!("{TIMER} cannot be stopped")).map(drop)
}

/// Runs a program in the transient unit and waits for its end. What it writes goes to `log`.
pub(super) async fn run(bus: Option<&SystemdUnits>, argv: &[OsString], log: &Path, patience: Duration) -> Result<(), Error> {
    if let Some(bus) = bus
        && let (Some(argv), Some(log)) = (argv.iter().map(|word| text(word)).collect::<Option<Vec<_>>>(), text(log.as_os_str()))
    {
        match bus.ready(STEPS).await {
            // From here on it may have been started: nobody starts it a second time.
            Ok(()) => return run_by(bus, &argv, &log, patience).await,
            Err(error) => tracing::warn!(%error, "the steps are run by systemd-run"),
        }
    }
    let mut line = args(&["--quiet", "--collect", "--wait", "--service-type=exec", "--property=KillMode=control-group"]);
    line.push(format!("--unit={STEPS}").into());
    line.push(format!("--description={DESCRIPTION}").into());
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

/// What the bus can carry.
fn text(word: &OsStr) -> Option<String> {
    word.to_str().map(str::to_owned)
}

/// The same over the bus. A unit of type "oneshot": its job ends with the program.
async fn run_by(bus: &SystemdUnits, argv: &[String], log: &str, patience: Duration) -> Result<(), Error> {
    let micros = |time: Duration| Variant::from(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
    let program = argv.first().map_or("", String::as_str);
    let properties = [
        ("Description", Variant::from(DESCRIPTION)),
        ("Type", Variant::from("oneshot")),
        ("CollectMode", Variant::from("inactive-or-failed")),
        ("KillMode", Variant::from("control-group")),
        ("TimeoutStartUSec", micros(patience)),
        ("TimeoutStopUSec", micros(STOP)),
        ("StandardOutputFileToTruncate", Variant::from(log)),
        ("StandardErrorFileToAppend", Variant::from(log)),
        ("ExecStart", Variant::new(vec![(program, argv, false)])),
    ];
    let begun = Instant::now();
    let mut ran = bus.run(STEPS, &properties, patience + STOP + AROUND).await;
    // The one that has just ended is still being put away: refused, so nothing was started.
    for _ in 0..PUT_AWAY {
        if !matches!(&ran, Err(Error::Look { trouble: Trouble::Taken, .. })) {
            break;
        }
        tokio::time::sleep(PUT_AWAY_PAUSE).await;
        ran = bus.run(STEPS, &properties, patience + STOP + AROUND).await;
    }
    match ran {
        Ok(result) if result == "done" => Ok(()),
        Ok(_) if begun.elapsed() >= patience => Err(failed(format!("it did not end within {} s", patience.as_secs()))),
        Ok(result) => Err(failed(format!("{STEPS} ended '{result}'"))),
        Err(error) => Err(failed(error.to_string())),
    }
}

/// Runs a program that only looks, in a unit in which `hidden` is an empty folder, so that locks in it are nobody else's. An exit status of 1 is
/// a success, too. What it writes goes to `log`. Returns how the unit ended. Errors: `Look`.
pub(super) async fn look_aside(
    bus: &SystemdUnits,
    (argv, hidden, log): (&[String], &str, &str),
    patience: Duration,
) -> Result<String, Error> {
    let micros = u64::try_from(patience.as_micros()).unwrap_or(u64::MAX);
    let program = argv.first().map_or("", String::as_str);
    let good: (Vec<i32>, Vec<i32>) = (vec![1], Vec::new());
    let properties = [
        ("Description", Variant::from("A declaration of pvelet is checked")),
        ("Type", Variant::from("oneshot")),
        ("CollectMode", Variant::from("inactive-or-failed")),
        ("KillMode", Variant::from("control-group")),
        ("TimeoutStartUSec", Variant::from(micros)),
        ("SuccessExitStatus", Variant::new(good)),
        ("TemporaryFileSystem", Variant::new(vec![(hidden, "")])),
        ("StandardOutputFileToTruncate", Variant::from(log)),
        ("StandardErrorFileToAppend", Variant::from(log)),
        ("ExecStart", Variant::new(vec![(program, argv, false)])),
    ];
    bus.run(CHECK, &properties, patience + AROUND).await
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
