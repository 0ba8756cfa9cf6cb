//! The calls that the agent makes: path and parameters of each, and what their answers hold.

use http::Method;
use serde::Deserialize;
use serde_json::Value;

use std::collections::BTreeMap;

use super::{
    AllocateCall, CloneCall, ConfigCall, DestroyCall, MoveCall, PowerCall, StorageInfo, Upid, VolumeDetail, VolumeInfo,
    api::{Call, quote},
    classify::{ANSWER_LOST, Subject},
};
use crate::{error::Error, host::storage::StorageConfig};

pub(super) fn version() -> Call<'static> {
    Call { method: Method::GET, path: "/version".into(), params: Vec::new(), about: Subject::default() }
}

pub(super) fn storages(node: &str) -> Call<'_> {
    Call { method: Method::GET, path: format!("/nodes/{}/storage", quote(node)), params: Vec::new(), about: Subject::vm(node, 0) }
}

pub(super) fn volumes<'a>(node: &'a str, storage: &'a str, vmid: u32) -> Call<'a> {
    Call {
        method: Method::GET,
        path: format!("/nodes/{}/storage/{}/content", quote(node), quote(storage)),
        params: vec![("vmid", vmid.to_string()), ("content", "images".into())],
        about: Subject { storage: Some(storage), ..Subject::vm(node, vmid) },
    }
}

pub(super) fn storage_config(storage: &str) -> Call<'_> {
    Call {
        method: Method::GET,
        path: format!("/storage/{}", quote(storage)),
        params: Vec::new(),
        about: Subject { storage: Some(storage), ..Subject::default() },
    }
}

fn volume_path(node: &str, volid: &str) -> Result<String, Error> {
    let Some((storage, _)) = volid.split_once(':') else { return Err(Error::Internal(format!("'{volid}' is no volume id"))) };
    Ok(format!("/nodes/{}/storage/{}/content/{}", quote(node), quote(storage), quote(volid)))
}

pub(super) fn volume<'a>(node: &'a str, volid: &'a str) -> Result<Call<'a>, Error> {
    let about = Subject { storage: volid.split(':').next(), ..Subject::vm(node, 0) };
    Ok(Call { method: Method::GET, path: volume_path(node, volid)?, params: Vec::new(), about })
}

pub(super) fn allocate<'a>(node: &'a str, call: &'a AllocateCall) -> Call<'a> {
    Call {
        method: Method::POST,
        path: format!("/nodes/{}/storage/{}/content", quote(node), quote(&call.storage)),
        params: vec![
            ("vmid", call.vmid.to_string()),
            ("filename", call.name.clone()),
            ("size", (call.bytes >> 10).to_string()),
            ("format", call.format.clone()),
        ],
        about: Subject { storage: Some(&call.storage), ..Subject::vm(node, call.vmid) },
    }
}

pub(super) fn move_disk<'a>(node: &'a str, vmid: u32, call: &'a MoveCall) -> Call<'a> {
    let params = vec![
        ("disk", call.slot.clone()),
        ("storage", call.storage.clone()),
        ("format", call.format.clone()),
        ("digest", call.digest.clone()),
    ];
    let about = Subject { storage: Some(&call.storage), ..Subject::vm(node, vmid) };
    Call { method: Method::POST, path: vm_path(node, vmid, "/move_disk"), params, about }
}

fn vm_path(node: &str, vmid: u32, rest: &str) -> String {
    format!("/nodes/{}/qemu/{vmid}{rest}", quote(node))
}

pub(super) fn clone_vm<'a>(node: &'a str, call: &'a CloneCall) -> Call<'a> {
    let mut params = vec![("newid", call.vmid.to_string()), ("name", call.name.clone()), ("description", call.description.clone())];
    if call.full {
        params.push(("full", "1".into()));
        params.extend(call.storage.as_ref().map(|s| ("storage", s.clone())));
    }
    params.extend(call.pool.as_ref().map(|p| ("pool", p.clone())));
    Call {
        method: Method::POST,
        path: vm_path(node, call.template, "/clone"),
        params,
        about: Subject { template: Some(call.template), storage: call.storage.as_deref(), ..Subject::vm(node, call.vmid) },
    }
}

/// `task`: by a task (POST), or at once (PUT).
pub(super) fn set_config<'a>(node: &'a str, vmid: u32, call: &'a ConfigCall, task: bool) -> Call<'a> {
    let mut params: Vec<(&str, String)> = Vec::with_capacity(call.set.len() + 3);
    for (key, value) in &call.set {
        // PVE wants the keys as URL-encoded text, which the form then encodes once more.
        params.push((key, if key == "sshkeys" { quote(value) } else { value.clone() }));
    }
    if !call.delete.is_empty() {
        params.push(("delete", call.delete.join(",")));
    }
    params.extend(call.digest.as_ref().map(|d| ("digest", d.clone())));
    if call.skip_lock {
        params.push(("skiplock", "1".into()));
    }
    let method = if task { Method::POST } else { Method::PUT };
    Call { method, path: vm_path(node, vmid, "/config"), params, about: Subject::vm(node, vmid) }
}

pub(super) fn resize<'a>(node: &'a str, vmid: u32, slot: &str, bytes: u64, digest: Option<&str>) -> Call<'a> {
    let mut params = vec![("disk", slot.to_owned()), ("size", bytes.to_string())];
    params.extend(digest.map(|d| ("digest", d.to_owned())));
    Call { method: Method::PUT, path: vm_path(node, vmid, "/resize"), params, about: Subject::vm(node, vmid) }
}

pub(super) fn power<'a>(node: &'a str, vmid: u32, call: &PowerCall) -> Call<'a> {
    let (what, params) = match call {
        PowerCall::Start => ("start", Vec::new()),
        PowerCall::Stop => ("stop", Vec::new()),
        PowerCall::Reset => ("reset", Vec::new()),
        PowerCall::Shutdown { timeout_s, force } => {
            let mut params = vec![("timeout", timeout_s.to_string())];
            if *force {
                params.push(("forceStop", "1".into()));
            }
            ("shutdown", params)
        }
    };
    Call { method: Method::POST, path: vm_path(node, vmid, &format!("/status/{what}")), params, about: Subject::vm(node, vmid) }
}

pub(super) fn destroy<'a>(node: &'a str, vmid: u32, call: &DestroyCall) -> Call<'a> {
    let flags = [("purge", call.purge), ("destroy-unreferenced-disks", call.unreferenced_disks), ("skiplock", call.skip_lock)];
    let params = flags.into_iter().filter(|(_, on)| *on).map(|(key, _)| (key, "1".to_owned())).collect();
    Call { method: Method::DELETE, path: vm_path(node, vmid, ""), params, about: Subject::vm(node, vmid) }
}

pub(super) fn free_volume<'a>(node: &'a str, volid: &'a str) -> Result<Call<'a>, Error> {
    let about = Subject { storage: volid.split(':').next(), ..Subject::vm(node, 0) };
    Ok(Call { method: Method::DELETE, path: volume_path(node, volid)?, params: Vec::new(), about })
}

pub(super) fn stop_task<'a>(node: &'a str, upid: &'a Upid) -> Call<'a> {
    Call {
        method: Method::DELETE,
        path: format!("/nodes/{}/tasks/{}", quote(node), quote(&upid.text)),
        params: Vec::new(),
        about: Subject::task(upid, 0),
    }
}

/// The UPID that a call answered with. Without one it was carried out all the same, and its task has to be looked for.
pub(super) fn upid(call: &Call<'_>, data: &Value) -> Result<Upid, Error> {
    data.as_str().and_then(Upid::parse).ok_or_else(|| {
        tracing::error!(method = %call.method, path = call.path, %data, "an answer of PVE's daemon that is not understood");
        Error::PveAnswerLost { detail: ANSWER_LOST.to_owned() }
    })
}

fn unexpected(call: &Call<'_>, data: &Value) -> Error {
    Error::PveFailed { message: format!("{} {} was answered with {data}, which is not understood", call.method, call.path), upid: None }
}

/// A number that PVE writes as a number or as text.
fn number(value: &Value) -> u64 {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "`as` saturates; sizes are no larger than 2^53 in JSON")]
    let float = |f: f64| f as u64;
    value.as_u64().or_else(|| value.as_f64().map(float)).or_else(|| value.as_str()?.parse().ok()).unwrap_or(0)
}

/// The answer of [`storages`].
pub(super) fn read_storages(call: &Call<'_>, data: Value) -> Result<Vec<StorageInfo>, Error> {
    #[derive(Deserialize)]
    struct Row {
        storage: String,
        #[serde(rename = "type")]
        kind: String,
        #[serde(default)]
        content: String,
        #[serde(default)]
        active: Value,
        #[serde(default)]
        enabled: Value,
        #[serde(default)]
        shared: Value,
        #[serde(default)]
        total: Value,
        #[serde(default)]
        avail: Value,
    }
    let rows: Vec<Row> = serde_json::from_value(data).map_err(|e| unexpected(call, &Value::String(e.to_string())))?;
    let mut found: Vec<_> = rows
        .into_iter()
        .map(|r| {
            let mut content: Vec<String> = r.content.split(',').filter(|c| !c.is_empty()).map(str::to_owned).collect();
            // PVE tells them in the order of a hash.
            content.sort();
            StorageInfo {
                id: r.storage,
                kind: r.kind,
                content,
                active: number(&r.active) != 0,
                enabled: number(&r.enabled) != 0,
                shared: number(&r.shared) != 0,
                total: number(&r.total),
                available: number(&r.avail),
            }
        })
        .collect();
    found.sort_by(|a, b| a.id.cmp(&b.id));
    Ok(found)
}

/// The answer of [`volumes`]. With a VMID PVE also lists what has no owner (imports, snippets): left out.
pub(super) fn read_volumes(call: &Call<'_>, vmid: u32, data: Value) -> Result<Vec<VolumeInfo>, Error> {
    #[derive(Deserialize)]
    struct Row {
        volid: String,
        #[serde(default)]
        vmid: Value,
        #[serde(default)]
        size: Value,
        #[serde(default)]
        format: String,
        parent: Option<String>,
        #[serde(default)]
        used: Value,
        #[serde(default)]
        ctime: Value,
    }
    let rows: Vec<Row> = serde_json::from_value(data).map_err(|e| unexpected(call, &Value::String(e.to_string())))?;
    let mut found: Vec<_> = rows
        .into_iter()
        .filter(|r| number(&r.vmid) == u64::from(vmid))
        .map(|r| VolumeInfo {
            volid: r.volid,
            vmid,
            size: number(&r.size),
            format: r.format,
            parent: r.parent,
            used: number(&r.used),
            ctime: number(&r.ctime),
        })
        .collect();
    found.sort_by(|a, b| a.volid.cmp(&b.volid));
    Ok(found)
}

/// The answer of [`storage_config`]: every option is text, whatever PVE makes of it in JSON.
pub(super) fn read_storage_config(call: &Call<'_>, data: &Value) -> Result<StorageConfig, Error> {
    let Some(map) = data.as_object() else { return Err(unexpected(call, data)) };
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let mut options: BTreeMap<String, String> = map.iter().map(|(key, value)| (key.clone(), text(value))).collect();
    let id = options.remove("storage").unwrap_or_default();
    let kind = options.remove("type").unwrap_or_default();
    let always_shared = matches!(kind.as_str(), "nfs" | "cifs" | "cephfs" | "glusterfs" | "rbd" | "iscsi" | "iscsidirect" | "zfs" | "pbs");
    let shared = always_shared || map.get("shared").is_some_and(|v| number(v) != 0);
    Ok(StorageConfig { id, kind, shared, options })
}

/// The answer of [`volume`].
pub(super) fn read_volume(call: &Call<'_>, data: &Value) -> Result<VolumeDetail, Error> {
    let text = |key: &str| data.get(key).and_then(Value::as_str).map(str::to_owned);
    let (Some(path), Some(format)) = (text("path"), text("format")) else { return Err(unexpected(call, data)) };
    let of = |key: &str| data.get(key).map_or(0, number);
    Ok(VolumeDetail { path, size: of("size"), used: of("used"), format })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{super::api::form, *};

    fn shown(call: &Call<'_>) -> String {
        format!("{} {} {}", call.method, call.path, form(&call.params))
    }

    fn clone_call(full: bool) -> CloneCall {
        CloneCall {
            template: 9010,
            vmid: 500,
            name: "web".into(),
            description: "a\nb".into(),
            full,
            storage: full.then(|| "local".into()),
            pool: Some("p1".into()),
        }
    }

    #[test]
    fn each_call_has_path_and_parameters() {
        let config = ConfigCall {
            set: BTreeMap::from([("cores".into(), "2".into())]),
            delete: vec!["tags".into(), "net1".into()],
            digest: Some("abc".into()),
            skip_lock: true,
        };
        let upid = Upid::parse("UPID:pve1:00001664:000CD507:6B03F864:qmclone:9010:root@pam:").unwrap();
        let shutdown = PowerCall::Shutdown { timeout_s: 30, force: true };
        let (linked, full) = (clone_call(false), clone_call(true));
        let (nothing, keep) = (ConfigCall::default(), DestroyCall::default());
        let all = DestroyCall { purge: true, unreferenced_disks: true, skip_lock: true };
        let cases = [
            (storages("pve1"), "GET /nodes/pve1/storage "),
            (volumes("pve1", "local", 500), "GET /nodes/pve1/storage/local/content vmid=500&content=images"),
            (clone_vm("pve1", &linked), "POST /nodes/pve1/qemu/9010/clone newid=500&name=web&description=a%0Ab&pool=p1"),
            (clone_vm("pve1", &full), "POST /nodes/pve1/qemu/9010/clone newid=500&name=web&description=a%0Ab&full=1&storage=local&pool=p1"),
            (set_config("pve1", 500, &config, true), "POST /nodes/pve1/qemu/500/config cores=2&delete=tags%2Cnet1&digest=abc&skiplock=1"),
            (set_config("pve1", 500, &nothing, false), "PUT /nodes/pve1/qemu/500/config "),
            (resize("pve1", 500, "scsi0", 1 << 30, Some("abc")), "PUT /nodes/pve1/qemu/500/resize disk=scsi0&size=1073741824&digest=abc"),
            (power("pve1", 500, &PowerCall::Start), "POST /nodes/pve1/qemu/500/status/start "),
            (power("pve1", 500, &shutdown), "POST /nodes/pve1/qemu/500/status/shutdown timeout=30&forceStop=1"),
            (destroy("pve1", 500, &keep), "DELETE /nodes/pve1/qemu/500 "),
            (destroy("pve1", 500, &all), "DELETE /nodes/pve1/qemu/500 purge=1&destroy-unreferenced-disks=1&skiplock=1"),
            (
                free_volume("pve1", "local:500/vm-500-disk-0.raw").unwrap(),
                "DELETE /nodes/pve1/storage/local/content/local%3A500%2Fvm-500-disk-0.raw ",
            ),
            (
                stop_task("pve1", &upid),
                "DELETE /nodes/pve1/tasks/UPID%3Apve1%3A00001664%3A000CD507%3A6B03F864%3Aqmclone%3A9010%3Aroot%40pam%3A ",
            ),
        ];
        for (call, text) in cases {
            assert_eq!(shown(&call), text);
        }
    }

    #[test]
    fn ssh_keys_are_encoded_twice_as_recorded() {
        let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILr+5LSUOC/EpNknMShaCGwPEFOt8GlF0Gvscys7eZGc me@host";
        let call = ConfigCall { set: BTreeMap::from([("sshkeys".into(), key.into())]), ..ConfigCall::default() };
        let call = set_config("pve1", 210, &call, false);
        assert_eq!(call.params[0].1, "ssh-ed25519%20AAAAC3NzaC1lZDI1NTE5AAAAILr%2B5LSUOC%2FEpNknMShaCGwPEFOt8GlF0Gvscys7eZGc%20me%40host");
        assert!(form(&call.params).starts_with("sshkeys=ssh-ed25519%2520AAAAC3"));
    }

    #[test]
    fn storages_and_volumes_are_read_as_recorded() {
        let data = serde_json::from_str(
            r#"[{"avail":70479826944,"type":"dir","active":1,"storage":"local","content":"rootdir,images","shared":0,"enabled":1,"total":270553174016,"used_fraction":0.1},
                {"avail":0,"total":0,"content":"images","enabled":0,"used":0,"shared":1,"storage":"disabled","type":"nfs","active":0}]"#,
        )
        .unwrap();
        let found = read_storages(&storages("pve1"), data).unwrap();
        assert_eq!((found[0].id.as_str(), found[0].enabled, found[0].shared), ("disabled", false, true));
        assert_eq!((&found[1].content, found[1].available), (&vec!["images".to_owned(), "rootdir".into()], 70_479_826_944));

        let data = serde_json::from_str(
            r#"[{"parent":"../9010/base-9010-disk-0.qcow2","format":"qcow2","vmid":603,"used":528384,"content":"images","size":1073741824,"volid":"local:9010/base-9010-disk-0.qcow2/603/vm-603-disk-0.qcow2","ctime":1},
                {"volid":"local:import/img.qcow2","format":"qcow2","ctime":1795416089,"size":196616,"content":"import"}]"#,
        )
        .unwrap();
        let found = read_volumes(&volumes("pve1", "local", 603), 603, data).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].size, found[0].parent.as_deref()), (1 << 30, Some("../9010/base-9010-disk-0.qcow2")));
    }

    #[test]
    fn an_answer_without_a_upid_is_a_lost_one() {
        let call = power("pve1", 500, &PowerCall::Start);
        assert!(matches!(upid(&call, &Value::Null), Err(Error::PveAnswerLost { .. })), "its task may run");
        assert_eq!(upid(&call, &Value::from("UPID:pve1:1:2:3:qmstart:500:root@pam:")).unwrap().kind, "qmstart");
    }
}
