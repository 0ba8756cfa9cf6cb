//! One agent as a process, on one simulated host.

use std::{
    collections::BTreeMap,
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use pve_sim::layout::NodeLayout;

use crate::{Pki, Process, pki, program};

/// How long anything that should happen at once may take on a loaded machine.
pub const SOON: Duration = Duration::from_secs(30);

/// An agent: its files, its address, and its process while it runs.
pub struct Agent {
    /// The node.
    pub node: String,
    /// The PVE cluster; the node's own name where it stands alone.
    pub cluster: String,
    /// Its host.
    pub layout: NodeLayout,
    /// Where it listens, once it has been started.
    pub address: SocketAddr,
    /// Its folder: configuration, state, log.
    pub dir: PathBuf,
    /// Lines added to sections of the configuration: section -> text.
    pub extra: BTreeMap<String, String>,
    /// "manage" or "observe".
    pub mode: String,
    /// Its VMIDs.
    pub range: (u32, u32),
    /// The program; what was built beside the tests unless set.
    pub program: PathBuf,
    cert: (PathBuf, PathBuf),
    ca: PathBuf,
    crl: PathBuf,
    cluster_dir: PathBuf,
    process: Option<Process>,
}

impl Agent {
    /// Prepares an agent for a node; nothing runs yet.
    pub fn prepare(dir: &Path, cluster_dir: &Path, layout: NodeLayout, pki: &Pki, cluster: &str, range: (u32, u32)) -> Self {
        let node = layout.node().to_owned();
        let dir = dir.join(format!("agent-{node}"));
        fs::create_dir_all(&dir).expect("agent folder");
        Self {
            cert: pki.host(cluster, &node),
            cluster: cluster.to_owned(),
            ca: pki.dir.ca_cert_path(),
            crl: pki.dir.crl_path(),
            node,
            layout,
            address: ([127, 0, 0, 1], 0).into(),
            dir,
            extra: BTreeMap::new(),
            mode: "manage".into(),
            range,
            program: program("pvelet-agent"),
            cluster_dir: cluster_dir.to_owned(),
            process: None,
        }
    }

    /// Gives it files of its own for certificate, CAs and revocation lists, as on a real host: what it installs is not the CA's own folder.
    /// Before it starts.
    pub fn trust_apart(&mut self) {
        let folder = self.dir.join("tls");
        fs::create_dir_all(&folder).expect("folder for certificates");
        let moved = |from: &Path, name: &str| {
            let to = folder.join(name);
            fs::copy(from, &to).expect("a copy");
            to
        };
        self.cert = (moved(&self.cert.0, "agent.crt"), moved(&self.cert.1, "agent.key"));
        self.ca = moved(&self.ca, "ca.crt");
        self.crl = moved(&self.crl, "ca.crl");
    }

    /// The file of the configuration.
    pub fn config_path(&self) -> PathBuf {
        self.dir.join("agent.toml")
    }

    /// The journal's folder.
    pub fn state_dir(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// The folder from which images may be imported.
    pub fn import_dir(&self) -> PathBuf {
        let dir = self.dir.join("import");
        fs::create_dir_all(&dir).expect("import folder");
        dir
    }

    /// Certificate and key files.
    pub fn cert(&self) -> &(PathBuf, PathBuf) {
        &self.cert
    }

    /// The text of the configuration as it would be written now.
    pub fn config_text(&self) -> String {
        let l = &self.layout;
        let api = fs::read_to_string(l.api_address()).unwrap_or_default();
        let part = |section: &str| self.extra.get(section).cloned().unwrap_or_default();
        let ticket = [
            program("pve-sim").display().to_string(),
            "ticket".into(),
            "--dir".into(),
            self.cluster_dir.display().to_string(),
            "--node".into(),
            self.node.clone(),
        ];
        format!(
            "mode = {mode:?}\nlisten = \"{address}\"\nstate_dir = {state:?}\n{top}\n\
             [tls]\ncert = {cert:?}\nkey = {key:?}\nclient_ca = {ca:?}\ncrl = {crl:?}\ntrust_domain = \"{domain}\"\n{tls}\n\
             [pve]\nnode = {node:?}\napi_address = \"{api}\"\nticket_command = {ticket:?}\netc_pve = {etc:?}\nrun = {run:?}\ntask_log = {tasks:?}\nsysfs = {sysfs:?}\nstorage_root = {root:?}\n{pve}\n\
             [vm]\nvmid_range = \"{first}-{last}\"\n{vm}\n\
             [volumes]\nimport_folders = [{import:?}]\n{volumes}\n\
             [limits]\n{limits}\n[log]\nformat = \"text\"\n{log}\n{rest}\n",
            mode = self.mode,
            address = self.address,
            state = self.state_dir(),
            top = part(""),
            cert = self.cert.0,
            key = self.cert.1,
            ca = self.ca,
            crl = self.crl,
            domain = pki::TRUST_DOMAIN,
            tls = part("tls"),
            node = self.node,
            api = api.trim(),
            etc = l.etc_pve(),
            run = l.host_path("/run"),
            tasks = l.tasks(),
            sysfs = l.host_path("/sys"),
            root = l.root(),
            import = self.import_dir(),
            volumes = part("volumes"),
            pve = part("pve"),
            first = self.range.0,
            last = self.range.1,
            vm = part("vm"),
            limits = part("limits"),
            log = part("log"),
            rest = part("rest"),
        )
    }

    /// Writes the configuration, starts the process, and waits until it serves. The port stays the same at later starts.
    pub fn start(&mut self) {
        self.start_with(&[]).unwrap_or_else(|e| panic!("agent of {}: {e}", self.node));
    }

    /// As [`Self::start`], with environment variables; the failure is returned.
    pub fn start_with(&mut self, envs: &[(&str, &str)]) -> io::Result<()> {
        let end = Instant::now() + SOON;
        loop {
            match self.try_start(envs) {
                // A tool that a killed one was about to start holds the journal's lock until it is executed.
                Err(e) if e.to_string().contains("another pvelet-agent uses it") && Instant::now() < end => {}
                other => return other,
            }
        }
    }

    fn try_start(&mut self, envs: &[(&str, &str)]) -> io::Result<()> {
        fs::write(self.config_path(), self.config_text())?;
        let ready = self.dir.join("ready");
        let _ = fs::remove_file(&ready);
        let config = self.config_path().display().to_string();
        let args = ["run", "--config", &config, "--ready-file", &ready.display().to_string()];
        let (here, log, notify) = (Path::new("."), self.dir.join("agent.log"), self.dir.join("notify.sock"));
        let mut process = Process::start_in(here, &self.program, &args, envs, &log, Some(&notify))?;
        process.wait_ready(SOON)?;
        let text = fs::read_to_string(&ready)?;
        self.address = text.trim().parse().map_err(|_| io::Error::other(format!("no address in the ready file: {text:?}")))?;
        self.process = Some(process);
        Ok(())
    }

    /// Ends it as a power cut would.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().expect("kill");
        }
    }

    /// Asks it to end, and waits.
    pub fn stop(&mut self) -> std::process::ExitStatus {
        let mut process = self.process.take().expect("it runs");
        process.signal(Signal::SIGTERM).expect("SIGTERM");
        process.wait_exit(SOON).expect("graceful end")
    }

    /// Waits until it has ended by itself (a crash point).
    pub fn wait_exit(&mut self) -> std::process::ExitStatus {
        self.process.take().expect("it runs").wait_exit(SOON).expect("it ends")
    }

    /// SIGHUP.
    pub fn reload(&self) {
        self.process.as_ref().expect("it runs").signal(Signal::SIGHUP).expect("SIGHUP");
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("it runs")
    }

    /// Waits until its log has a line as wanted, and returns it.
    ///
    /// # Panics
    /// After `limit`, with the log.
    pub fn wait_line(&self, limit: Duration, wanted: impl Fn(&str) -> bool) -> String {
        let found = |log: &str| log.lines().find(|line| wanted(line)).map(str::to_owned);
        crate::pve::wait_file(self.dir.join("agent.log"), limit, found).unwrap_or_else(|e| panic!("{e}"))
    }

    /// Everything it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("agent.log")).unwrap_or_default()
    }
}
