//! Start, stop, shutdown, reboot, reset, suspend, resume.

use std::{
    fs::File,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

use super::{env::Env, ha, status};
use crate::{
    api::{Call, Failure, Param, Params, Reply, Route, Schema, format},
    faults::Faults,
    guest,
    storage::Volume,
    task::Worker,
    vmconf::VmConfig,
};

/// Seconds for which a shutdown waits by default.
const SHUTDOWN_S: u64 = 60;
/// Seconds for which a stop waits for QEMU to quit.
const STOP_S: u64 = 60;
/// A guest with more memory than this cannot be started.
const MEMORY_MAX_MIB: u64 = 1 << 20;
/// How often a guest that is to end is looked at.
const LOOK: Duration = Duration::from_millis(10);

pub(super) fn routes() -> Vec<Route> {
    let flag = |name| Param::boolean(name).optional();
    let timeout = || Param::integer("timeout").min(0).optional();
    let post = |path, params: Vec<Param>, handler| Route::new("POST", path, Schema::from(params).with([Param::vmid("vmid")]), handler);
    vec![
        post(
            "/nodes/{node}/qemu/{vmid}/status/start",
            vec![
                flag("skiplock"),
                timeout(),
                Param::text("stateuri").max_length(128).optional(),
                Param::text("machine").optional(),
                Param::text("migratedfrom").format(format::node).optional(),
                Param::text("migration_network").optional(),
                Param::choice("migration_type", &["secure", "insecure"]).optional(),
                Param::text("force-cpu").optional(),
                Param::text("targetstorage").optional(),
                flag("with-conntrack-state"),
            ],
            start,
        ),
        post(
            "/nodes/{node}/qemu/{vmid}/status/stop",
            vec![flag("skiplock"), timeout(), flag("keepActive"), flag("overrule-shutdown")],
            stop,
        ),
        post(
            "/nodes/{node}/qemu/{vmid}/status/shutdown",
            vec![flag("skiplock"), timeout(), flag("keepActive"), flag("forceStop")],
            shutdown,
        ),
        post("/nodes/{node}/qemu/{vmid}/status/reboot", vec![timeout()], reboot),
        post("/nodes/{node}/qemu/{vmid}/status/reset", vec![flag("skiplock")], reset),
        post(
            "/nodes/{node}/qemu/{vmid}/status/suspend",
            vec![flag("skiplock"), flag("todisk"), Param::text("statestorage").requires("todisk").optional()],
            suspend,
        ),
        post("/nodes/{node}/qemu/{vmid}/status/resume", vec![flag("skiplock"), flag("nocheck")], resume),
    ]
}

fn task(call: &Call, kind: &str, action: &str) -> Result<Reply, Failure> {
    call.task(kind, &call.params.vmid().to_string(), action, json!(call.params))
}

fn start(call: &Call) -> Result<Reply, Failure> {
    super::check_quorum(&call.layout)?;
    if ha::is_managed(&call.layout, call.params.vmid()) {
        return task(call, "hastart", "ha_start");
    }
    task(call, "qmstart", "start")
}

fn stop(call: &Call) -> Result<Reply, Failure> {
    if ha::is_managed(&call.layout, call.params.vmid()) {
        if call.params.flag("overrule-shutdown") {
            return Err(Failure::parameter("overrule-shutdown", "Not applicable for HA resources."));
        }
        return ha_stop(call, call.params.integer("timeout").map_or(0, i64::unsigned_abs));
    }
    task(call, "qmstop", "stop")
}

fn ha_stop(call: &Call, timeout: u64) -> Result<Reply, Failure> {
    let vmid = call.params.vmid();
    call.task("hastop", &vmid.to_string(), "ha_stop", json!({"vmid": vmid.to_string(), "timeout": timeout.to_string()}))
}

fn shutdown(call: &Call) -> Result<Reply, Failure> {
    let vmid = call.params.vmid();
    if ha::is_managed(&call.layout, vmid) {
        return ha_stop(call, call.params.integer("timeout").map_or(SHUTDOWN_S, i64::unsigned_abs));
    }
    let paused = matches!(status::qmp_status(&call.layout, vmid, guest::running(&call.layout, vmid)).as_str(), "paused" | "prelaunch");
    if paused && !call.params.flag("forceStop") {
        return Err(Failure::die("VM is paused - cannot shutdown"));
    }
    task(call, "qmshutdown", "shutdown")
}

fn reboot(call: &Call) -> Result<Reply, Failure> {
    let vmid = call.params.vmid();
    match status::qmp_status(&call.layout, vmid, guest::running(&call.layout, vmid)).as_str() {
        "stopped" => Err(Failure::die(format!("VM {vmid} not running"))),
        "paused" | "prelaunch" => Err(Failure::die("VM is paused - cannot shutdown")),
        _ => task(call, "qmreboot", "reboot"),
    }
}

fn needs_running(call: &Call) -> Result<(), Failure> {
    let vmid = call.params.vmid();
    guest::running(&call.layout, vmid).map(|_| ()).ok_or_else(|| Failure::die(format!("VM {vmid} not running")))
}

fn reset(call: &Call) -> Result<Reply, Failure> {
    needs_running(call)?;
    task(call, "qmreset", "reset")
}

fn suspend(call: &Call) -> Result<Reply, Failure> {
    needs_running(call)?;
    if call.params.flag("todisk") {
        return Err(Failure::NotImplemented { method: "POST".into(), path: "/nodes/{node}/qemu/{vmid}/status/suspend?todisk=1".into() });
    }
    task(call, "qmpause", "suspend")
}

fn resume(call: &Call) -> Result<Reply, Failure> {
    needs_running(call)?;
    task(call, "qmresume", "resume")
}

fn params(args: &Value) -> Result<Params, Failure> {
    Ok(serde_json::from_value(args.clone()).map_err(std::io::Error::other)?)
}

/// The work of `hastart`: the HA manager starts the VM, some time.
pub(super) fn ha_start_work(worker: &Worker, args: &Value) -> Result<(), Failure> {
    let vmid = params(args)?.vmid();
    worker.log(&format!("Requesting HA start for VM {vmid}"));
    ha::request_start(&worker.layout, vmid)
}

/// The work of `hastop`.
pub(super) fn ha_stop_work(worker: &Worker, args: &Value) -> Result<(), Failure> {
    let params = params(args)?;
    worker.log(&format!("Requesting HA stop for VM {}", params.vmid()));
    ha::request_stop(&worker.layout, params.vmid(), params.integer("timeout").map_or(0, i64::unsigned_abs))
}

/// The work of `qmstart`.
pub(super) fn start_work(worker: &Worker, args: &Value) -> Result<(), Failure> {
    let params = params(args)?;
    let env = Env::of_worker(worker);
    let vmid = params.vmid();
    let _held = env.lock(vmid)?;
    start_locked(&env, vmid, params.flag("skiplock"), params.text("machine"))
}

/// Starts a VM whose lock is held.
pub(super) fn start_locked(env: &Env<'_>, vmid: u32, skiplock: bool, machine: Option<&str>) -> Result<(), Failure> {
    let mut config = env.load(vmid)?;
    if config.flag("template") {
        return Err(Failure::die("you can't start a vm if it's a template"));
    }
    let suspended = config.lock() == Some("suspended");
    if !skiplock && !suspended {
        config.check_lock()?;
    }
    if env.running(vmid).is_some() {
        return Err(Failure::die(format!("VM {vmid} already running")));
    }
    if suspended {
        env.log("Resuming suspended VM");
        config.values.remove("lock");
        env.store(vmid, &config)?;
        env.log("Resumed VM, removing state");
    }
    if config.cloudinit_added.take().is_some() {
        env.store(vmid, &config)?;
    }
    if !config.pending.is_empty() || !config.pending_delete.is_empty() {
        super::pending::apply_pending(env, vmid, &mut config)?;
    }
    check_volumes(env, &config)?;
    if let Some(machine) = machine.filter(|machine| is_too_new(machine)) {
        let node = env.layout.node();
        return Err(Failure::die(format!(
            "Installed QEMU version '10.0.13' is too old to run machine type '{machine}+pve0', please upgrade node '{node}'"
        )));
    }
    check_bridges(env, &config)?;
    if let Some(text) = config.get("args").filter(|text| text.contains("-nonsense")) {
        env.log(&format!("qemu-system-x86_64: {text}: invalid option"));
        return Err(Failure::die("start failed: QEMU exited with code 1"));
    }
    if status::memory_mib(&config) > MEMORY_MAX_MIB {
        env.log("qemu-system-x86_64: cannot set up guest memory 'pc.ram': Cannot allocate memory");
        return Err(Failure::die("start failed: QEMU exited with code 1"));
    }
    env.begun();
    let options = guest::Options {
        name: config.get("name").unwrap_or_default().to_owned(),
        uuid: config.get("smbios1").and_then(|fields| fields.split(',').find_map(|field| field.strip_prefix("uuid="))).map(str::to_owned),
        agent: super::agent_enabled(&config),
        cores: config.get("cores").and_then(|text| text.parse().ok()).unwrap_or(1),
        memory_mib: status::memory_mib(&config),
        paused: config.flag("freeze"),
    };
    guest::spawn(env.layout, vmid, &options).map(|_| ()).map_err(|error| Failure::die(format!("start failed: {error}")))
}

fn is_too_new(machine: &str) -> bool {
    let version = machine.rsplit('-').next().and_then(|text| text.split('.').next()?.parse::<u32>().ok());
    version.is_some_and(|major| major > 10)
}

fn check_volumes(env: &Env<'_>, config: &VmConfig) -> Result<(), Failure> {
    let storages = env.storages()?;
    for (_, drive) in config.drives() {
        if !drive.has_volume() {
            continue;
        }
        let volume = Volume::parse(&drive.file)?;
        storages.activate(&volume.storage)?;
        if drive.is_cloudinit() {
            super::cloudinit::generate(env, &storages, config, &drive)?;
        } else if !storages.exists(&volume) {
            return Err(Failure::die(format!("volume '{}' does not exist", drive.file)));
        }
    }
    Ok(())
}

/// The bridges of a node: those of its network configuration. Without one, any bridge is taken.
fn check_bridges(env: &Env<'_>, config: &VmConfig) -> Result<(), Failure> {
    let unknown = config.values.iter().find_map(|(key, value)| unknown_bridge(env, key, value));
    unknown.map_or(Ok(()), |bridge| Err(Failure::die(format!("bridge '{bridge}' does not exist"))))
}

/// The bridge of a network card, if this node has none of that name.
pub(super) fn unknown_bridge(env: &Env<'_>, key: &str, value: &str) -> Option<String> {
    let bridge = super::options::net(key, value).filter(|_| key.starts_with("net"))?.remove("bridge")?;
    let interfaces = std::fs::read_to_string(env.layout.host_path("/etc/network/interfaces")).ok()?;
    let known = interfaces.lines().any(|line| line.strip_prefix("iface ").and_then(|rest| rest.split(' ').next()) == Some(&bridge));
    (!known).then_some(bridge)
}

/// The work of `qmstop`.
pub(super) fn stop_work(worker: &Worker, args: &Value) -> Result<(), Failure> {
    let params = params(args)?;
    let (env, vmid) = (Env::of_worker(worker), params.vmid());
    if !env.layout.vm_config(vmid).exists() {
        return Err(Failure::die(format!("unable to find configuration file for VM {vmid} on node '{}'", env.layout.node())));
    }
    let _held = env.lock(vmid)?;
    let Some(pid) = env.running(vmid) else { return Ok(()) };
    if !params.flag("skiplock") {
        env.load(vmid)?.check_lock()?;
    }
    env.begun();
    let limit = params.integer("timeout").map_or(STOP_S, i64::unsigned_abs);
    let asked = guest::qmp::command(env.layout, vmid, "quit");
    if limit == 0 || asked.is_err() || !is_gone(&env, vmid, Duration::from_secs(limit))? {
        terminate(&env, vmid, pid)?;
    }
    hold_cleanup_lock(&env, vmid);
    Ok(())
}

/// The work of `qmshutdown`.
pub(super) fn shutdown_work(worker: &Worker, args: &Value) -> Result<(), Failure> {
    let params = params(args)?;
    let (env, vmid) = (Env::of_worker(worker), params.vmid());
    if !env.layout.vm_config(vmid).exists() {
        return Err(Failure::die(format!("unable to find configuration file for VM {vmid} on node '{}'", env.layout.node())));
    }
    let _held = env.lock(vmid)?;
    if env.running(vmid).is_none() {
        return Ok(());
    }
    let config = env.load(vmid)?;
    if !params.flag("skiplock") {
        config.check_lock()?;
    }
    env.begun();
    let limit = params.integer("timeout").map_or(SHUTDOWN_S, i64::unsigned_abs);
    power_down(&env, vmid, &config, limit, params.flag("forceStop"))?;
    hold_cleanup_lock(&env, vmid);
    Ok(())
}

/// Asks a guest to shut itself down.
fn power_down(env: &Env<'_>, vmid: u32, config: &VmConfig, limit_s: u64, force: bool) -> Result<(), Failure> {
    let Some(pid) = env.running(vmid) else { return Ok(()) };
    let begin = Instant::now();
    let agent = super::agent_enabled(config);
    let agent_answers = agent && guest::qmp::agent(env.layout, vmid, "guest-ping", Duration::from_secs(3)).is_ok();
    if agent && !agent_answers {
        env.log(&format!("QEMU Guest Agent is not running - VM {vmid} qga command 'guest-ping' failed - got timeout"));
    }
    let asked = if agent_answers {
        guest::qmp::agent(env.layout, vmid, "guest-shutdown", Duration::from_secs(limit_s.max(1))).map(|_| ())
    } else {
        guest::qmp::command(env.layout, vmid, "system_powerdown").map(|_| ())
    };
    // A guest that goes away while it answers obeys.
    if asked.is_err() && env.running(vmid).is_none() {
        return Ok(());
    }
    let left = Duration::from_secs(limit_s).saturating_sub(begin.elapsed());
    if is_gone(env, vmid, left)? {
        return Ok(());
    }
    if force {
        return terminate(env, vmid, pid);
    }
    Err(Failure::die("VM quit/powerdown failed - got timeout"))
}

/// The work of `qmreboot`: a shutdown, after which the VM is started again.
pub(super) fn reboot_work(worker: &Worker, args: &Value) -> Result<(), Failure> {
    let params = params(args)?;
    let (env, vmid) = (Env::of_worker(worker), params.vmid());
    let _held = env.lock(vmid)?;
    let config = env.load(vmid)?;
    config.check_lock()?;
    env.begun();
    power_down(&env, vmid, &config, params.integer("timeout").map_or(SHUTDOWN_S, i64::unsigned_abs), false)?;
    start_locked(&env, vmid, true, None)
}

/// The work of `qmreset`.
pub(super) fn reset_work(worker: &Worker, args: &Value) -> Result<(), Failure> {
    monitor_work(worker, &params(args)?, "system_reset")
}

/// The work of `qmpause`.
pub(super) fn suspend_work(worker: &Worker, args: &Value) -> Result<(), Failure> {
    monitor_work(worker, &params(args)?, "stop")
}

/// The work of `qmresume`.
pub(super) fn resume_work(worker: &Worker, args: &Value) -> Result<(), Failure> {
    monitor_work(worker, &params(args)?, "cont")
}

fn monitor_work(worker: &Worker, params: &Params, command: &str) -> Result<(), Failure> {
    let (env, vmid) = (Env::of_worker(worker), params.vmid());
    let _held = env.lock(vmid)?;
    if !params.flag("skiplock") {
        env.load(vmid)?.check_lock()?;
    }
    env.begun();
    let done = guest::qmp::command(env.layout, vmid, command);
    done.map(|_| ()).map_err(|error| Failure::die(format!("VM {vmid} qmp command '{command}' failed - {error}")))
}

fn is_gone(env: &Env<'_>, vmid: u32, limit: Duration) -> Result<bool, Failure> {
    let deadline = Instant::now() + limit;
    while env.running(vmid).is_some() {
        env.check()?;
        if Instant::now() >= deadline {
            return Ok(false);
        }
        thread::sleep(LOOK);
    }
    Ok(true)
}

fn terminate(env: &Env<'_>, vmid: u32, pid: u32) -> Result<(), Failure> {
    env.log("VM still running - terminating now with SIGTERM");
    let pid = Pid::from_raw(i32::try_from(pid).unwrap_or(i32::MAX));
    let _ = kill(pid, Signal::SIGTERM);
    if !is_gone(env, vmid, Duration::from_secs(10))? {
        env.log("VM still running - terminating now with SIGKILL");
        let _ = kill(pid, Signal::SIGKILL);
        is_gone(env, vmid, Duration::from_secs(5))?;
    }
    Ok(())
}

/// The clean-up after a stop or destroy: a helper that holds the VM's lock for as long as the fault says.
pub(super) fn hold_cleanup_lock(env: &Env<'_>, vmid: u32) {
    let seconds = Faults::load(&env.layout.faults()).map_or(0.0, |faults| faults.cleanup_holds_lock_s);
    if seconds <= 0.0 {
        return;
    }
    // The lock belongs to the open file, which the helper gets as its input: it is held until the helper ends.
    let Ok(file) = File::options().append(true).read(true).create(true).open(env.layout.vm_lock(vmid)) else { return };
    let _ = Command::new("sh")
        .args(["-c", &format!("flock -x 0; sleep {seconds}")])
        .stdin(Stdio::from(file))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
}
