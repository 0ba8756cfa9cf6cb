//! kube-controller-manager: garbage collection, namespaces that end, service accounts, node life cycle.

use std::{net::Ipv4Addr, path::PathBuf};

use nix::sys::signal::Signal;

use super::{ApiServer, Kube, PATIENCE, api_server::ready, port::ReservedPort, programs};
use crate::Process;

/// A running controller manager, without leader election.
pub struct ControllerManager {
    args: Vec<String>,
    folder: PathBuf,
    client: Kube,
    process: Option<Process>,
    _port: ReservedPort,
}

impl ControllerManager {
    /// Starts one beside an API server; `controllers` as `--controllers` takes it (`*` for the usual ones), and more arguments. It must be dropped
    /// before the API server.
    ///
    /// # Panics
    /// When it does not start, with its log.
    pub async fn start(server: &ApiServer, controllers: &str, args: &[&str]) -> Self {
        let folder = server.folder().to_owned();
        let user = server.user("system:kube-controller-manager", None);
        let kubeconfig = server.kubeconfig(&user).display().to_string();
        let port = ReservedPort::of(Ipv4Addr::LOCALHOST.into()).expect("a free port");
        server.ca.server(&[Ipv4Addr::LOCALHOST.into()], &["localhost"]).write(&folder, "controller-manager");
        let file = |name: &str| folder.join(name).display().to_string();
        let mut all = vec![
            format!("--bind-address={}", port.address.ip()),
            format!("--secure-port={}", port.address.port()),
            "--permit-port-sharing".into(),
            format!("--tls-cert-file={}", file("controller-manager.crt")),
            format!("--tls-private-key-file={}", file("controller-manager.key")),
            format!("--kubeconfig={kubeconfig}"),
            format!("--authentication-kubeconfig={kubeconfig}"),
            format!("--authorization-kubeconfig={kubeconfig}"),
            format!("--root-ca-file={}", file("ca.crt")),
            format!("--service-account-private-key-file={}", file("service-account.key")),
            format!("--cluster-signing-cert-file={}", file("ca.crt")),
            format!("--cluster-signing-key-file={}", file("ca.key")),
            format!("--controllers={controllers}"),
            "--use-service-account-credentials".into(),
            "--leader-elect=false".into(),
            "--profiling=false".into(),
        ];
        all.extend(args.iter().map(|arg| (*arg).to_owned()));
        let client = Kube::new(port.address, server.ca(), &user);
        let mut manager = Self { args: all, folder, client, process: None, _port: port };
        manager.start_again().await;
        manager
    }

    /// Starts it after it was stopped or killed.
    ///
    /// # Panics
    /// When it runs, or does not start.
    pub async fn start_again(&mut self) {
        assert!(self.process.is_none(), "the controller manager runs");
        let args: Vec<&str> = self.args.iter().map(String::as_str).collect();
        let log = self.folder.join("kube-controller-manager.log");
        let process = Process::start_in(&self.folder, &programs().path("kube-controller-manager"), &args, &[], &log, None);
        let process = self.process.insert(process.expect("kube-controller-manager starts"));
        ready("the controller manager", process, &self.client, "/healthz", PATIENCE).await;
    }

    /// Asks it to end, and waits.
    ///
    /// # Panics
    /// When it does not run, or does not end.
    pub fn stop(&mut self) {
        let mut process = self.process.take().expect("the controller manager runs");
        process.signal(Signal::SIGTERM).expect("SIGTERM");
        process.wait_exit(PATIENCE).expect("the controller manager ends");
    }

    /// Its process.
    ///
    /// # Panics
    /// When it does not run.
    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("the controller manager runs")
    }
}
