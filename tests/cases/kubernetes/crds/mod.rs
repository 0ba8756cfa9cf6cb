//! The CustomResourceDefinitions on a real API server: what they take, refuse, fill in and show.

mod kubectl;
mod objects;
mod strings;
mod tables;

use std::{
    io::Write,
    process::{Command, Output, Stdio},
};

use pvelet_controller::crd;
use pvelet_tests::{
    kubernetes::{ApiServer, PATIENCE, programs, soon},
    program,
};
use serde_json::Value;

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
/// Nothing is stored, and fields that are not known are mistakes, as kubectl has it.
const DRY_RUN: &str = "dryRun=All&fieldValidation=Strict";

/// Where objects of a kind are.
fn collection(kind: &str) -> String {
    let (namespace, plural) = match kind {
        "PveHost" => ("", "pvehosts"),
        "PveMachine" => ("namespaces/default/", "pvemachines"),
        "PveNetwork" => ("", "pvenetworks"),
        "PveTenant" => ("", "pvetenants"),
        other => panic!("no such kind: {other}"),
    };
    format!("/apis/pvelet.dev/v1alpha1/{namespace}{plural}")
}

/// Runs kubectl with something on its standard input.
fn kubectl(server: &ApiServer, args: &[&str], input: &str) -> Output {
    let mut child = Command::new(programs().path("kubectl"))
        .arg("--kubeconfig")
        .arg(server.admin_kubeconfig())
        .args(args)
        .env("HOME", server.folder())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

/// What kubectl prints, once it is content.
fn printed(server: &ApiServer, args: &[&str], input: &str) -> String {
    let out = kubectl(server, args, input);
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// An API server with the definitions as `pvelet-controller crds` prints them.
async fn server() -> ApiServer {
    let server = ApiServer::start().await;
    let text = Command::new(program("pvelet-controller")).arg("crds").output().unwrap();
    assert!(text.status.success());
    let text = String::from_utf8(text.stdout).unwrap();
    let out = kubectl(&server, &["apply", "--server-side", "--warnings-as-errors", "-f", "-"], &text);
    assert!(out.status.success() && out.stderr.is_empty(), "{}", String::from_utf8_lossy(&out.stderr));
    for definition in crd::all() {
        let name = definition["metadata"]["name"].as_str().unwrap();
        let established = |crd: &Value| condition(crd, "Established").is_some_and(|c| c["status"] == "True");
        let crd = server.admin.wait(DEFINITIONS, name, PATIENCE, established).await;
        assert!(condition(&crd, "NonStructuralSchema").is_none(), "{crd:#}");
        assert!(condition(&crd, "NamesAccepted").is_some_and(|c| c["status"] == "True"), "{crd:#}");
    }
    // Established is said a moment before it is served.
    for kind in ["PveHost", "PveMachine", "PveNetwork", "PveTenant"] {
        soon(kind, async || server.admin.get(&collection(kind)).await.is_ok()).await;
    }
    server
}

fn condition<'a>(crd: &'a Value, kind: &str) -> Option<&'a Value> {
    crd["status"]["conditions"].as_array().into_iter().flatten().find(|c| c["type"] == kind)
}
