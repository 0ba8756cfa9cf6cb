//! The controller as a process, on a folder of manifests.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use nix::sys::signal::Signal;
use pvelet_proto::identity::Role;

use crate::{Agent, Pki, Process, agent::SOON, program};

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

    /// Lets it run until it ends by itself (a crash point), and kills it after this time.
    pub fn run_for(&mut self, limit: std::time::Duration) {
        let _ = self.process.take().expect("it runs").wait_exit(limit);
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
