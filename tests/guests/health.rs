//! A worker's health on a real host: systemd, containerd 1.7 as a unit, the agent as a service. One guest, one boot, all cases.

use std::{
    cell::Cell,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use pvelet_controller::tls::{CredentialFiles, Credentials};
use pvelet_proto::{
    identity::Role,
    v1::{self, CheckState, OperationState},
};
use pvelet_tests::{
    Client, Guest, GuestOptions, Pki,
    client::{operation_reason, reason},
    containerd,
    pki::TRUST_DOMAIN,
    program,
};
use tonic::Status;

const NODE: &str = "worker";
const PORT: u16 = 7443;
/// For anything in a guest that is emulated.
const SOON: Duration = Duration::from_secs(300);
const PAUSE: &str = "pvelet.test/pause:1";
const CONFIG: &str = "/etc/containerd/config.toml";
const UNIT: &str = "containerd.unit";
const RESPONDING: &str = "containerd.responding";
const SANDBOX: &str = "containerd.sandbox";
const TYPE: &str = "containerd.runtime-type";

/// Points at which the agent dies in the middle of a repair that helps.
const FORWARD: [&str; 9] = [
    "repair.intent_written",
    "repair.checked",
    "repair.backed_up",
    "repair.before_edit",
    "repair.edited",
    "repair.unit_restarted",
    "repair.verified",
    "repair.counted",
    "repair.end_written",
];
/// And of one that does not.
const BACK: [&str; 4] = ["repair.undo_begun", "repair.undo_edited", "repair.undo_restarted", "repair.undone"];

/// The CRI plugin's configuration; `runtime`: lines of runc's table, `options`: of its options.
fn config(runtime: &str, options: &str) -> String {
    format!(
        "version = 2\n\n# Kept by hand.\n[plugins.\"io.containerd.grpc.v1.cri\"]\n  sandbox_image = \"{PAUSE}\"\n\n\
         [plugins.\"io.containerd.grpc.v1.cri\".containerd]\n  default_runtime_name = \"runc\"\n\n\
         [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\n{runtime}\n\
         [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc.options]\n  SystemdCgroup = true\n{options}"
    )
}

fn healthy() -> String {
    config("  runtime_type = \"io.containerd.runc.v2\"\n", "")
}

/// The fault that this is about: the options of a runtime alone, which is thereby declared anew, and without a type.
fn without_type() -> String {
    config("", "")
}

/// The type is missing, and so is the program: the type alone does not help.
fn hopeless() -> String {
    config("", "  BinaryName = \"/nowhere/runc\"\n")
}

fn agent_config(policy: &str) -> String {
    let pve = format!("/var/lib/pve-sim/{NODE}");
    format!(
        "mode = \"manage\"\nlisten = \"10.0.2.15:{PORT}\"\n[tls]\ntrust_domain = \"{TRUST_DOMAIN}\"\n\
         [pve]\nnode = \"{NODE}\"\napi_address = \"@API@\"\n\
         ticket_command = [\"/usr/lib/pvelet/pve-sim\", \"ticket\", \"--dir\", \"/var/lib/pve-sim\", \"--node\", \"{NODE}\"]\n\
         etc_pve = \"{pve}/etc/pve\"\nrun = \"{pve}/run\"\ntask_log = \"{pve}/var/log/pve/tasks\"\nstorage_root = \"{pve}\"\n\
         [health]\nworker = \"yes\"\nperiod = \"2s\"\nprobe_period = \"10s\"\n\
         [repair]\npolicy = \"{policy}\"\nlimit_per_hour = 1\npatience = \"5s\"\n\
         [vm]\nvmid_range = \"100000-100999\"\n[log]\nformat = \"text\"\n"
    )
}

fn tar(root: &Path, file: &Path) {
    let out = Command::new("tar").arg("--owner=0").arg("--group=0").arg("-C").arg(root).arg("-cf").arg(file).arg(".").output().unwrap();
    assert!(out.status.success(), "{out:?}");
}

/// What is installed, as an archive from `/`.
fn package(dir: &Path, pki: &Pki) -> PathBuf {
    let root = dir.join("package");
    let (programs, units, tls) = (root.join("usr/lib/pvelet"), root.join("etc/systemd/system"), root.join("etc/pvelet/tls"));
    for folder in [&programs, &units, &tls] {
        fs::create_dir_all(folder).unwrap();
    }
    for name in ["pvelet-agent", "pve-sim"] {
        let out = Command::new("strip").arg("-o").arg(programs.join(name)).arg(program(name)).output().unwrap();
        assert!(out.status.success(), "{out:?}");
    }
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    fs::copy(repository.join("systemd/pvelet-agent.service"), units.join("pvelet-agent.service")).unwrap();
    let (cert, key) = pki.host(NODE, NODE);
    for (from, to) in [(cert, "agent.crt"), (key, "agent.key"), (pki.dir.ca_cert_path(), "ca.crt")] {
        fs::copy(from, tls.join(to)).unwrap();
    }
    fs::write(root.join("etc/pvelet/agent.toml"), agent_config("on-request")).unwrap();
    fs::create_dir_all(root.join("root")).unwrap();
    containerd::pause(&root.join("root/pause.tar"), PAUSE).unwrap();
    fs::create_dir_all(root.join("etc/containerd")).unwrap();
    fs::write(root.join("etc/containerd/config.toml"), healthy()).unwrap();
    let file = dir.join("package.tar");
    tar(&root, &file);
    file
}

/// The worker, and whom its agent answers.
struct Worker {
    guest: Guest,
    client: Client,
    admin: Client,
    runtime: tokio::runtime::Runtime,
    requests: Cell<u32>,
    _dir: tempfile::TempDir,
}

impl Worker {
    fn boot() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::new(dir.path());
        let package = package(dir.path(), &pki);
        let options = GuestOptions { name: NODE.into(), memory_mib: 1024, forwards: vec![PORT], ..GuestOptions::default() };
        let guest = Guest::boot(options).unwrap();
        guest.copy_in(&package, "/root/package.tar").unwrap();
        guest.sh("tar -C / -xf /root/package.tar; rm /root/package.tar");
        guest.sh(include_str!("files/worker.sh"));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let client = |role, name: &str| {
            let (cert, key) = pki.role(role, name);
            let files = CredentialFiles { ca: pki.dir.ca_cert_path(), cert, key };
            let _in = runtime.enter();
            Client::at(([127, 0, 0, 1], guest.port(PORT)).into(), NODE, NODE, Credentials::load(files).unwrap())
        };
        let (client, admin) = (client(Role::Operator, "tester"), client(Role::Admin, "person"));
        Self { guest, client, admin, runtime, requests: Cell::new(0), _dir: dir }
    }

    fn log(&self) -> String {
        self.guest.run("journalctl --no-pager --lines=60 -o short-monotonic -u pvelet-agent -u containerd | cut -c1-300").stdout
    }

    fn meta(&self) -> Option<v1::RequestMeta> {
        self.requests.set(self.requests.get() + 1);
        self.client.meta(&format!("r{}", self.requests.get()))
    }

    /// Asks until there is an answer that suits: the agent may just be starting.
    fn until<T>(&self, what: &str, mut ask: impl FnMut() -> Result<T, String>) -> T {
        let end = Instant::now() + SOON;
        loop {
            match ask() {
                Ok(answer) => return answer,
                Err(why) => assert!(Instant::now() < end, "{what}: {why}\n{}", self.log()),
            }
            self.pause();
        }
    }

    /// Returns when the agent tells something new, and soon in any case: it may just be starting.
    fn pause(&self) {
        let changed = async {
            let watched = self.client.agent.health().watch_health(v1::WatchHealthRequest {}).await;
            let Ok(mut stream) = watched.map(tonic::Response::into_inner) else { return std::future::pending().await };
            while let Ok(Some(message)) = stream.message().await {
                if !message.complete {
                    return;
                }
            }
        };
        let _ = self.runtime.block_on(async { tokio::time::timeout(Duration::from_secs(1), changed).await });
    }

    fn health(&self) -> Result<v1::Health, String> {
        let asked = async { self.client.agent.health().get_health(v1::GetHealthRequest::default()).await };
        let answer = self.runtime.block_on(asked).map_err(|e| e.to_string())?;
        answer.into_inner().health.ok_or_else(|| "no health".to_owned())
    }

    /// Waits until a check is in this state.
    fn wait(&self, check: &str, state: CheckState) -> v1::HealthCheck {
        self.until(&format!("{check} {state:?}"), || {
            let found = self.health()?.checks.into_iter().find(|c| c.id == check).ok_or("no such check")?;
            if found.state() == state { Ok(found) } else { Err(format!("{found:?}")) }
        })
    }

    fn well(&self) {
        for check in [UNIT, RESPONDING, TYPE, SANDBOX] {
            self.wait(check, CheckState::Ok);
        }
    }

    fn try_repair(&self, check: &str, dry_run: bool) -> Result<v1::RepairResponse, Status> {
        let request = v1::RepairRequest { meta: self.meta(), check: check.into(), dry_run };
        self.runtime.block_on(self.client.agent.health().repair(request)).map(tonic::Response::into_inner)
    }

    /// Asks for a repair and waits for its end.
    fn repair(&self, check: &str) -> v1::Operation {
        let begun = self.try_repair(check, false).unwrap_or_else(|e| panic!("{check}: {e}\n{}", self.log()));
        self.ended(&begun.operation.unwrap().name)
    }

    fn ended(&self, name: &str) -> v1::Operation {
        self.until(name, || {
            let request = v1::GetOperationRequest { name: name.into() };
            let asked = async { self.client.agent.operation().get_operation(request).await };
            let found = self.runtime.block_on(asked).map_err(|e| e.to_string())?.into_inner().operation.ok_or("none")?;
            if found.end_time.is_some() { Ok(found) } else { Err(format!("{found:?}")) }
        })
    }

    /// Has a check mended; returns how often that was asked for.
    fn repaired(&self, check: &str) -> u32 {
        let mut ended = self.repair(check);
        // In an emulated guest it may be well only after the agent has given up to wait for that; then it is asked once more.
        let why = ended.error.as_ref().map(|e| e.message.clone()).unwrap_or_default();
        let late = why.contains("the checks did not end") || why.contains("could not be found out");
        let once_more = operation_reason(&ended) == "REPAIR_FAILED" && late;
        if once_more {
            eprintln!("{check}: asked for once more: {why}");
            ended = self.repair(check);
        }
        assert_eq!(ended.state(), OperationState::Succeeded, "{ended:?}\n{}", self.log());
        1 + u32::from(once_more)
    }

    /// Writes containerd's configuration and starts containerd with it.
    fn configure(&self, text: &str) {
        self.write(text);
        self.guest.sh("systemctl reset-failed containerd.service; systemctl restart containerd.service");
    }

    fn write(&self, text: &str) {
        self.guest.sh(&format!("cat >{CONFIG} <<'END'\n{text}END\n"));
    }

    fn config(&self) -> String {
        self.guest.sh(&format!("cat {CONFIG}"))
    }

    fn clear(&self) -> bool {
        let request = v1::ClearRepairRequest { meta: self.meta() };
        self.runtime.block_on(self.admin.agent.health().clear_repair(request)).unwrap().into_inner().was_latched
    }
}

#[test]
fn a_worker_is_watched_and_repaired() {
    let worker = Worker::boot();
    worker.well();
    units(&worker);
    configuration(&worker);
    kills(&worker);
    automatic(&worker);
}

/// What systemd tells of the unit.
fn units(worker: &Worker) {
    let sh = |script: &str| worker.guest.sh(script);
    // Somebody stopped it.
    sh("systemctl stop containerd.service");
    let found = worker.wait(UNIT, CheckState::Failed);
    assert!(found.seen.contains("inactive") && found.repair == "restart containerd.service", "{found:?}");
    worker.repaired(UNIT);
    worker.well();

    // It was killed.
    sh("systemctl kill --signal=KILL containerd.service");
    let found = worker.wait(UNIT, CheckState::Failed);
    assert!(found.seen.contains("signal 9"), "{found:?}");
    worker.repaired(RESPONDING);
    worker.well();

    // It hangs: the unit is well, and containerd is not.
    sh("systemctl kill --signal=STOP containerd.service");
    let found = worker.wait(RESPONDING, CheckState::Failed);
    assert!(found.seen.contains("hangs") || found.seen.contains("no answer"), "{found:?}");
    worker.wait(UNIT, CheckState::Ok);
    worker.repaired(RESPONDING);
    worker.well();

    // It failed too often: systemd starts it no more, until that is reset.
    worker.write("version = 2\nroot = \n");
    sh("printf '[Unit]\\nStartLimitIntervalSec=600\\nStartLimitBurst=3\\n[Service]\\nRestart=always\\nRestartSec=100ms\\n' \
        >/etc/systemd/system/containerd.service.d/zz-limit.conf; systemctl daemon-reload; systemctl reset-failed containerd.service; \
        systemctl restart containerd.service || :");
    worker.until("the start limit", || {
        let found = worker.wait(UNIT, CheckState::Failed);
        if found.seen.contains("failed (failed)") { Ok(()) } else { Err(format!("{found:?}")) }
    });
    let found = worker.wait("containerd.config-syntax", CheckState::Failed);
    assert!(found.seen.contains("2") && found.seen.contains(CONFIG), "{found:?}");
    worker.write(&healthy());
    worker.repaired(UNIT);
    worker.well();
    // Restarts by systemd are counted by systemd, and told.
    sh("systemctl kill --signal=KILL containerd.service");
    worker.until("a restart by systemd", || {
        let restarts = sh("systemctl show --value --property=NRestarts containerd.service");
        if restarts.trim() == "1" { Ok(()) } else { Err(restarts) }
    });
    worker.well();
    sh("rm /etc/systemd/system/containerd.service.d/zz-limit.conf; systemctl daemon-reload");
}

/// What its configuration lacks.
fn configuration(worker: &Worker) {
    worker.configure(&without_type());
    let found = worker.wait(TYPE, CheckState::Failed);
    assert!(found.seen.contains(CONFIG) && found.remedy.contains("runtime_type"), "{found:?}");
    let found = worker.wait(SANDBOX, CheckState::Failed);
    assert!(found.seen.contains("must be set"), "{found:?}");
    let plan = worker.try_repair(TYPE, true).unwrap().plan.unwrap();
    assert!(plan.file == CONFIG && plan.file_diff.contains("io.containerd.runc.v2") && plan.units == ["containerd.service"], "{plan:?}");
    assert_eq!(worker.config(), without_type());
    let asked = worker.repaired(TYPE);
    worker.well();
    assert!(worker.config().contains("# Kept by hand."), "{}", worker.config());
    assert_eq!(worker.guest.sh("ls /etc/containerd | wc -l").trim(), (1 + asked).to_string(), "the copy is kept");

    // One that cannot work leaves the file byte by byte as it was; two latch.
    worker.configure(&hopeless());
    worker.wait(TYPE, CheckState::Failed);
    for latched in [false, true] {
        let ended = worker.repair(TYPE);
        assert_eq!(operation_reason(&ended), "REPAIR_FAILED", "{ended:?}");
        assert_eq!(worker.config(), hopeless());
        worker.wait(RESPONDING, CheckState::Ok);
        assert_eq!(worker.health().unwrap().repair.unwrap().latched, latched);
    }
    assert_eq!(reason(&worker.try_repair(TYPE, false).unwrap_err()), "REPAIR_LATCHED");
    // The latch is still there after a restart of the agent.
    worker.guest.sh("systemctl restart pvelet-agent.service");
    worker.until("the latch", || {
        worker.health().and_then(|h| if h.repair.unwrap_or_default().latched { Ok(()) } else { Err("none".into()) })
    });
    assert!(worker.clear() && !worker.clear());
}

/// The agent is killed at each step.
fn kills(worker: &Worker) {
    for (points, fault, hope) in [(&FORWARD[..], without_type(), true), (&BACK[..], hopeless(), false)] {
        for point in points {
            worker.configure(&fault);
            worker
                .guest
                .sh(&format!("echo 'export PVELET_CRASH_AT={point}' >/etc/pvelet-fault/run; systemctl restart pvelet-agent.service"));
            worker.wait(TYPE, CheckState::Failed);
            let id = format!("killed-{point}");
            let meta = worker.client.meta(&id);
            // The connection breaks with the agent.
            let request = v1::RepairRequest { meta, check: TYPE.into(), dry_run: false };
            let _ = worker.runtime.block_on(worker.client.agent.health().repair(request));
            worker.until(point, || {
                let restarts = worker.guest.sh("systemctl show --value --property=NRestarts pvelet-agent.service");
                if restarts.trim() == "1" { Ok(()) } else { Err("the agent was not killed".to_owned()) }
            });
            let ended = worker.until(point, || {
                let list = v1::ListOperationsRequest { tenant: worker.client.tenant.clone(), request_id: id.clone(), ..Default::default() };
                let listed = worker.runtime.block_on(worker.client.agent.operation().list_operations(list)).map_err(|e| e.to_string())?;
                let found = listed.into_inner().operations.into_iter().next().ok_or("it is not known")?;
                if found.end_time.is_some() { Ok(found) } else { Err(format!("{found:?}")) }
            });
            let config = worker.config();
            if ended.state() == OperationState::Succeeded {
                assert!(hope && config.contains("io.containerd.runc.v2"), "{point}: {ended:?}");
                worker.wait(SANDBOX, CheckState::Ok);
            } else {
                assert_eq!(config, fault, "{point}: {ended:?}");
                worker.wait(RESPONDING, CheckState::Ok);
            }
            assert!(["", "AGENT_RESTARTED", "REPAIR_FAILED"].contains(&operation_reason(&ended).as_str()), "{point}: {ended:?}");
            worker.clear();
        }
    }
}

/// What the agent mends by itself: so often an hour as it may.
fn automatic(worker: &Worker) {
    worker.configure(&healthy());
    worker.guest.sh("sed -i 's/^policy = .*/policy = \"automatic\"/' /etc/pvelet/agent.toml; systemctl restart pvelet-agent.service");
    worker.well();
    worker.configure(&without_type());
    worker.until("a repair by itself", || {
        let status = worker.health()?.repair.unwrap_or_default();
        if status.in_last_hour == 1 { Ok(()) } else { Err(format!("{status:?}")) }
    });
    worker.well();
    let status = worker.health().unwrap().repair.unwrap();
    let ended = worker.ended(&status.last_operation);
    assert_eq!(
        (ended.state(), ended.caller.as_str()),
        (OperationState::Succeeded, format!("spiffe://{TRUST_DOMAIN}/cluster/{NODE}/host/{NODE}").as_str())
    );

    // Once more within the hour: found, and left to a person, who may still ask for it.
    worker.configure(&without_type());
    worker.wait(SANDBOX, CheckState::Failed);
    // Three times as long as the agent's patience.
    worker.until("it is failed for long", || {
        let found = worker.wait(TYPE, CheckState::Failed);
        let seconds = |t: Option<prost_types::Timestamp>| t.map_or(0, |t| t.seconds);
        if seconds(found.observe_time) - seconds(found.since) > 15 { Ok(()) } else { Err(format!("{found:?}")) }
    });
    assert_eq!(worker.config(), without_type());
    worker.repaired(TYPE);
    worker.well();
}
