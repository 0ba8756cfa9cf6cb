//! kube-apiserver as kubeadm sets it up, with a CA, an etcd and a port of its own.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::ExitStatus,
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use nix::sys::signal::Signal;
use serde_json::json;
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use super::{
    Etcd, Kube, KubeError, PATIENCE,
    pki::{ClusterCa, write_service_account_key},
    port::ReservedPort,
    programs,
};
use crate::Process;

/// Somebody whom the API server knows.
#[derive(Debug, Clone)]
pub enum User {
    /// By a client's certificate.
    Certificate {
        /// The user's name.
        name: String,
        /// The certificate in PEM.
        cert: String,
        /// The private key in PEM.
        key: String,
    },
    /// By a bearer token.
    Token {
        /// What the user is called in a kubeconfig; the server reads the name from the token.
        name: String,
        /// The token.
        token: String,
    },
}

/// How an API server is started.
#[derive(Debug, Clone)]
pub struct ApiServerOptions {
    /// The address to listen on.
    pub ip: IpAddr,
    /// More arguments.
    pub args: Vec<String>,
}

impl Default for ApiServerOptions {
    fn default() -> Self {
        Self { ip: Ipv4Addr::LOCALHOST.into(), args: Vec::new() }
    }
}

/// A running API server. It, its etcd and its files are gone when it is dropped. (And when the thread ends that started it.)
pub struct ApiServer {
    /// Where it keeps its objects.
    pub etcd: Etcd,
    /// A client that may do everything.
    pub admin: Kube,
    admin_kubeconfig: PathBuf,
    args: Vec<String>,
    process: Option<Process>,
    pub(super) ca: ClusterCa,
    port: ReservedPort,
    // Dropped last.
    folder: TempDir,
}

impl ApiServer {
    /// Starts one as most tests want it, and waits until it is ready.
    ///
    /// # Panics
    /// When it does not start, with its log.
    pub async fn start() -> Self {
        Self::start_with(ApiServerOptions::default()).await
    }

    /// As [`Self::start`], with options.
    pub async fn start_with(options: ApiServerOptions) -> Self {
        let folder = TempDir::with_prefix("pvelet-kubernetes-").expect("temporary folder");
        let dir = folder.path();
        let ca = ClusterCa::new();
        fs::write(dir.join("ca.crt"), &ca.cert).expect("the CA");
        fs::write(dir.join("ca.key"), ca.key()).expect("the CA's key");
        let names = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"];
        ca.server(&[options.ip, Ipv4Addr::LOCALHOST.into()], &names).write(dir, "apiserver");
        write_service_account_key(dir);
        let port = ReservedPort::of(options.ip).expect("a free port");
        let etcd = Etcd::start(dir);
        let file = |name: &str| dir.join(name).display().to_string();
        let mut args = vec![
            format!("--bind-address={}", port.address.ip()),
            format!("--secure-port={}", port.address.port()),
            "--permit-port-sharing".into(),
            // No Endpoints of the Service `kubernetes`: an address of loopback is none for them. The address only must look like one.
            "--advertise-address=192.0.2.1".into(),
            "--endpoint-reconciler-type=none".into(),
            format!("--etcd-servers={}", etcd.url()),
            format!("--tls-cert-file={}", file("apiserver.crt")),
            format!("--tls-private-key-file={}", file("apiserver.key")),
            format!("--client-ca-file={}", file("ca.crt")),
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local".into(),
            format!("--service-account-key-file={}", file("service-account.pub")),
            format!("--service-account-signing-key-file={}", file("service-account.key")),
            "--service-cluster-ip-range=10.96.0.0/16".into(),
            "--authorization-mode=Node,RBAC".into(),
            "--enable-admission-plugins=NodeRestriction".into(),
            "--allow-privileged".into(),
            "--profiling=false".into(),
        ];
        args.extend(options.args);
        let admin = certificate(&ca, "kubernetes-admin", Some("system:masters"));
        let mut server = Self {
            admin: Kube::new(port.address, &ca.cert, &admin),
            admin_kubeconfig: dir.join("kubernetes-admin.kubeconfig"),
            etcd,
            args,
            process: None,
            ca,
            port,
            folder,
        };
        server.kubeconfig(&admin);
        server.start_again().await;
        server
    }

    /// Starts it after it was stopped or killed, on the same port with the same data, and waits until it is ready.
    ///
    /// # Panics
    /// When it runs, or does not start.
    pub async fn start_again(&mut self) {
        self.launch();
        self.ready(PATIENCE).await;
    }

    /// As [`Self::start_again`], but does not wait: for a test that has no etcd yet.
    ///
    /// # Panics
    /// When it runs.
    pub fn launch(&mut self) {
        assert!(self.process.is_none(), "the API server runs");
        let args: Vec<&str> = self.args.iter().map(String::as_str).collect();
        let log = self.folder.path().join("kube-apiserver.log");
        let process = Process::start_in(self.folder.path(), &programs().path("kube-apiserver"), &args, &[], &log, None);
        self.process = Some(process.expect("kube-apiserver starts"));
    }

    /// Waits until it says that it is ready. After etcd was away for long it tries again only now and then: 20 s for an outage of 100 s were seen.
    ///
    /// # Panics
    /// When it ends before, or after `limit`.
    pub async fn ready(&mut self, limit: Duration) {
        let process = self.process.as_mut().expect("the API server runs");
        ready("the API server", process, &self.admin, "/readyz", limit).await;
    }

    /// Asks it to end, and waits.
    ///
    /// # Panics
    /// When it does not run, or does not end.
    pub fn stop(&mut self) -> ExitStatus {
        let mut process = self.process.take().expect("the API server runs");
        process.signal(Signal::SIGTERM).expect("SIGTERM");
        process.wait_exit(PATIENCE).expect("the API server ends")
    }

    /// Ends it as a power cut would.
    ///
    /// # Panics
    /// When it does not run.
    pub fn kill(&mut self) {
        self.process.take().expect("the API server runs").kill().expect("SIGKILL");
    }

    /// Stops it and starts it again.
    ///
    /// # Panics
    /// As [`Self::stop`] and [`Self::start_again`].
    pub async fn restart(&mut self) {
        self.stop();
        self.start_again().await;
    }

    /// SIGSTOP: connections stay, and are answered no more.
    ///
    /// # Panics
    /// When it does not run.
    pub fn freeze(&mut self) {
        self.process().freeze().expect("SIGSTOP");
    }

    /// SIGCONT after [`Self::freeze`].
    ///
    /// # Panics
    /// When it does not run.
    pub fn thaw(&mut self) {
        self.process().thaw().expect("SIGCONT");
    }

    /// Its process.
    ///
    /// # Panics
    /// When it does not run.
    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("the API server runs")
    }

    /// Where it listens, also after a restart.
    pub fn address(&self) -> SocketAddr {
        self.port.address
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("https://{}", self.port.address)
    }

    /// The certificate of its CA in PEM.
    pub fn ca(&self) -> &str {
        &self.ca.cert
    }

    /// Its folder: certificates, keys, logs; gone with it.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The kubeconfig of somebody who may do everything.
    pub fn admin_kubeconfig(&self) -> &Path {
        &self.admin_kubeconfig
    }

    /// A user with a certificate. Kubernetes takes name and group from it: `system:node:<name>` in `system:nodes` is a kubelet.
    pub fn user(&self, name: &str, group: Option<&str>) -> User {
        certificate(&self.ca, name, group)
    }

    /// A token of a ServiceAccount that exists, good for an hour, as a pod would get it.
    ///
    /// # Errors
    /// As [`Kube::get`].
    pub async fn service_account(&self, namespace: &str, name: &str) -> Result<User, KubeError> {
        let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 3600}});
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token");
        let answer = self.admin.create(&path, &request).await?;
        let token = answer["status"]["token"].as_str().unwrap_or_default().to_owned();
        Ok(User::Token { name: format!("{namespace}-{name}"), token })
    }

    /// A client as a user.
    pub fn client(&self, user: &User) -> Kube {
        Kube::new(self.port.address, &self.ca.cert, user)
    }

    /// Writes a kubeconfig for a user into the server's folder; all is in the one file.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn kubeconfig(&self, user: &User) -> PathBuf {
        let (name, credentials) = match user {
            User::Certificate { name, cert, key } => {
                (name, json!({"client-certificate-data": STANDARD.encode(cert), "client-key-data": STANDARD.encode(key)}))
            }
            User::Token { name, token } => (name, json!({"token": token})),
        };
        // JSON is YAML.
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": self.url(), "certificate-authority-data": STANDARD.encode(&self.ca.cert)}}],
            "users": [{"name": name, "user": credentials}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": name}}],
        });
        let path = self.folder.path().join(format!("{}.kubeconfig", name.replace(':', "-")));
        fs::write(&path, format!("{config:#}\n")).expect("a kubeconfig");
        path
    }
}

fn certificate(ca: &ClusterCa, name: &str, group: Option<&str>) -> User {
    let issued = ca.client(name, group);
    User::Certificate { name: name.to_owned(), cert: issued.cert, key: issued.key }
}

/// Waits until a program says at a path that it is ready.
pub(super) async fn ready(what: &str, process: &mut Process, client: &Kube, path: &str, limit: Duration) {
    let end = Instant::now() + limit;
    loop {
        let answer = client.text(path).await;
        if answer.is_ok() {
            return;
        }
        assert!(process.alive(), "{what} has ended before it was ready");
        assert!(Instant::now() < end, "{what} is not ready after {limit:?}: {answer:?}");
        // Nothing tells when: its notice to a service manager comes before it is ready.
        sleep(Duration::from_millis(20)).await;
    }
}
