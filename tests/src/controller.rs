//! The controller as a process, on a folder of manifests.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use nix::sys::signal::Signal;
use pvelet_proto::identity::Role;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{Agent, Pki, Process, agent::SOON, program};

/// With this it tells where it serves its metrics.
const SERVING: &str = "serving metrics";

/// A controller with its folder of manifests.
pub struct Controller {
    /// The folder.
    pub manifests: PathBuf,
    /// The program; what was built beside the tests unless set.
    pub program: PathBuf,
    dir: PathBuf,
    args: Vec<String>,
    process: Option<Process>,
}

impl Controller {
    /// Prepares a controller; nothing runs yet.
    pub fn prepare(dir: &Path, pki: &Pki, name: &str) -> Self {
        let dir = dir.join(format!("controller-{name}"));
        let manifests = dir.join("manifests");
        fs::create_dir_all(&manifests).expect("manifest folder");
        let (cert, key) = pki.role(Role::Operator, name);
        let text = |p: PathBuf| p.display().to_string();
        let args = vec![
            "run".into(),
            "--manifests".into(),
            text(manifests.clone()),
            "--name".into(),
            name.into(),
            "--cert".into(),
            text(cert),
            "--key".into(),
            text(key),
            "--ca".into(),
            text(pki.dir.ca_cert_path()),
        ];
        Self { manifests, program: program("pvelet-controller"), dir, args, process: None }
    }

    /// Prepares an instance of an installation on a cluster's custom resources; nothing runs yet.
    pub fn in_cluster(dir: &Path, pki: &Pki, installation: &str, instance: &str, kubeconfig: &Path, lease_namespace: &str) -> Self {
        let dir = dir.join(format!("controller-{installation}-{instance}"));
        fs::create_dir_all(&dir).expect("folder of the controller");
        let (cert, key) = pki.role(Role::Operator, installation);
        let text = |p: PathBuf| p.display().to_string();
        let args = [
            "run".into(),
            "--store=kubernetes".into(),
            format!("--kubeconfig={}", kubeconfig.display()),
            format!("--lease-namespace={lease_namespace}"),
            format!("--name={installation}"),
            format!("--cert={}", text(cert)),
            format!("--key={}", text(key)),
            format!("--ca={}", text(pki.dir.ca_cert_path())),
        ];
        Self { manifests: PathBuf::new(), program: program("pvelet-controller"), dir, args: args.into(), process: None }
    }

    /// Gives it one more argument at each start from now on, such as `--kubeconfig`.
    pub fn with(&mut self, flag: &str, value: &str) {
        self.args.extend([flag.to_owned(), value.to_owned()]);
    }

    /// Starts it. Nobody needs to wait: what it does shows in its folder.
    pub fn start(&mut self) {
        self.start_with(&[]).expect("controller starts");
    }

    /// Starts it with environment variables.
    pub fn start_with(&mut self, envs: &[(&str, &str)]) -> io::Result<()> {
        let args: Vec<&str> = self.args.iter().map(String::as_str).collect();
        self.process = Some(Process::start_in(Path::new("."), &self.program, &args, envs, &self.dir.join("controller.log"), None)?);
        Ok(())
    }

    /// The manifest of a host, written to its file.
    pub fn add_host(&self, agent: &Agent) {
        let text = format!(
            "apiVersion: pvelet.dev/v1alpha1\nkind: PveHost\nmetadata:\n  name: {node}\nspec:\n  address: \"{address}\"\n  cluster: {cluster}\n  node: {node}\n",
            node = agent.node,
            address = agent.address,
            cluster = agent.cluster,
        );
        self.write(&format!("host-{}.yaml", agent.node), &text);
    }

    /// Writes a manifest in one step.
    pub fn write(&self, file: &str, text: &str) {
        let temporary = self.dir.join(format!("{file}.tmp"));
        fs::write(&temporary, text).expect("manifest");
        fs::rename(temporary, self.manifests.join(file)).expect("manifest is put in place");
    }

    /// Removes a manifest.
    pub fn remove(&self, file: &str) {
        fs::remove_file(self.manifests.join(file)).expect("manifest is removed");
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

    /// As [`Self::wait_exit`], however long it takes; whoever stops waiting has lost nothing.
    pub async fn ended(&mut self) -> std::process::ExitStatus {
        let status = self.process.as_mut().expect("it runs").ended().await.expect("it ends");
        self.process = None;
        status
    }

    /// What it answers at a path where it serves metrics: the status, and the text. For one started once, `with("--metrics-address", ...)`.
    pub async fn http(&self, path: &str) -> (u16, String) {
        let address = |log: &str| Some(log.lines().find(|l| l.contains(SERVING))?.split("address=").nth(1)?.trim().to_owned());
        let address = crate::pve::wait_file(self.dir.join("controller.log"), SOON, address).expect("it serves metrics");
        let mut stream = TcpStream::connect(&address).await.expect("its metrics");
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("its metrics");
        let mut text = String::new();
        stream.read_to_string(&mut text).await.expect("its metrics");
        let status = text.split_whitespace().nth(1).and_then(|s| s.parse().ok()).expect("a status");
        (status, text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
    }

    /// Waits until its log holds a text.
    pub fn wait_log(&self, text: &str, limit: std::time::Duration) {
        let found = |log: &str| log.contains(text).then_some(());
        crate::pve::wait_file(self.dir.join("controller.log"), limit, found).unwrap_or_else(|e| panic!("'{text}': {e}\n{}", self.log()));
    }

    /// Stops it with SIGSTOP; it stands still afterwards.
    pub fn freeze(&self) {
        self.process.as_ref().expect("it runs").freeze().expect("SIGSTOP");
    }

    /// Lets it run on.
    pub fn thaw(&self) {
        self.process.as_ref().expect("it runs").thaw().expect("SIGCONT");
    }

    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("it runs").pid()
    }

    /// Everything it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("controller.log")).unwrap_or_default()
    }
}
