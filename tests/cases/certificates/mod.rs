//! Certificates of real agents: renewed over the API and on the host, revoked, their CA replaced, and everything that goes wrong meanwhile.

mod crash;
mod faults;
mod host;
mod renewal;
mod renewed;
mod revoked_host;
mod rollover;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use pvelet_controller::{pki::CertInfo, tls::CredentialFiles};
use pvelet_proto::{identity::Role, v1};
use pvelet_tests::{Agent, Client, Stack, StackOptions, program};
use serde_json::Value;

/// Agents that have CAs and lists of their own, and an administrator at a terminal.
struct World {
    stack: Stack,
    config: PathBuf,
    pki: String,
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn run(name: &str, args: &[&str]) -> Output {
    Command::new(program(name)).args(args).output().unwrap()
}

/// What a program printed; it must have ended well.
#[track_caller]
fn good(output: &Output) -> String {
    assert!(output.status.success(), "{}\n{}\n{}", output.status, text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

impl World {
    fn new(nodes: Vec<&'static str>) -> Self {
        let mut stack = Stack::start(StackOptions { nodes, start_agents: false, ..StackOptions::default() });
        let (mut config, pki) = (String::new(), stack.pki.dir.ca_cert_path());
        for agent in stack.agents.values_mut() {
            agent.trust_apart();
            agent.start();
            config += &format!("\n[[host]]\nname = \"{}\"\ncluster = \"{}\"\naddress = \"{}\"\n", agent.node, agent.cluster, agent.address);
        }
        let (cert, key) = stack.pki.role(Role::Admin, "ann");
        config = format!("ca = {pki:?}\ncert = {cert:?}\nkey = {key:?}\n{config}");
        let file = stack.dir.path().join("pveletctl.toml");
        fs::write(&file, config).unwrap();
        Self { stack, config: file, pki: pki.parent().unwrap().display().to_string() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.stack.dir.path().join(name)
    }

    fn file(&self, name: &str, content: &str) -> String {
        let path = self.path(name);
        fs::write(&path, content).unwrap();
        path.display().to_string()
    }

    fn ctl(&self, args: &[&str]) -> Output {
        Command::new(program("pveletctl")).arg("--config").arg(&self.config).args(args).output().unwrap()
    }

    /// As [`Self::ctl`] of `pki` with the CA's folder.
    fn pki(&self, args: &[&str]) -> Output {
        self.ctl(&[&["pki"], args, &["--dir", &self.pki]].concat())
    }

    /// Exit status and output in JSON.
    fn json(&self, args: &[&str]) -> (i32, Value) {
        let output = self.pki(&[args, &["--output", "json"]].concat());
        let value =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}{}", text(&output.stdout), text(&output.stderr)));
        (output.status.code().unwrap(), value)
    }

    fn admin(&self, node: &str) -> Client {
        let (cert, key) = self.stack.pki.role(Role::Admin, "admin");
        self.client(node, cert, key)
    }

    fn client(&self, node: &str, cert: PathBuf, key: PathBuf) -> Client {
        let files = CredentialFiles { ca: self.stack.pki.dir.ca_cert_path(), cert, key };
        Client::new(&self.stack.agents[node], pvelet_controller::tls::Credentials::load(files).unwrap())
    }

    /// The certificate that a host shows on a new connection.
    async fn served(&self, node: &str) -> CertInfo {
        self.admin(node).agent.served_certificate().await.unwrap()
    }

    /// The folder of a host's certificate, key, CAs and lists: name -> content.
    fn files(&self, node: &str) -> BTreeMap<String, String> {
        files(&self.stack.agents[node])
    }
}

fn files(agent: &Agent) -> BTreeMap<String, String> {
    let folder = agent.cert().0.parent().unwrap();
    let entries = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_file());
    entries.map(|p| (name(&p), fs::read_to_string(&p).unwrap())).collect()
}

fn name(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}

async fn get(client: &Client) -> v1::GetCertificateResponse {
    client.agent.certificate().get_certificate(v1::GetCertificateRequest {}).await.unwrap().into_inner()
}

/// A signing request of a host.
async fn request(client: &Client) -> String {
    let ask = v1::CreateSigningRequestRequest::default();
    client.agent.certificate().create_signing_request(ask).await.unwrap().into_inner().request_pem
}

/// The lines of a private key in PEM, without its frame: none of them may be seen anywhere.
fn secrets(key_pem: &str) -> Vec<String> {
    let lines: Vec<String> = key_pem.lines().filter(|l| !l.starts_with("-----") && !l.is_empty()).map(str::to_owned).collect();
    assert!(!lines.is_empty());
    lines
}
