//! What a user may do: root may do everything.

use serde_json::{Map, Value, json};

use super::{Call, Failure, Param, Reply, Route};

const PATHS: [&str; 8] = ["/", "/access", "/access/groups", "/nodes", "/pool", "/sdn", "/storage", "/vms"];
const PRIVILEGES: [&str; 47] = [
    "Datastore.Allocate",
    "Datastore.AllocateSpace",
    "Datastore.AllocateTemplate",
    "Datastore.Audit",
    "Group.Allocate",
    "Mapping.Audit",
    "Mapping.Modify",
    "Mapping.Use",
    "Permissions.Modify",
    "Pool.Allocate",
    "Pool.Audit",
    "Realm.Allocate",
    "Realm.AllocateUser",
    "SDN.Allocate",
    "SDN.Audit",
    "SDN.Use",
    "Sys.AccessNetwork",
    "Sys.Audit",
    "Sys.Console",
    "Sys.Incoming",
    "Sys.Modify",
    "Sys.PowerMgmt",
    "Sys.Syslog",
    "User.Modify",
    "VM.Allocate",
    "VM.Audit",
    "VM.Backup",
    "VM.Clone",
    "VM.Config.CDROM",
    "VM.Config.CPU",
    "VM.Config.Cloudinit",
    "VM.Config.Disk",
    "VM.Config.HWType",
    "VM.Config.Memory",
    "VM.Config.Network",
    "VM.Config.Options",
    "VM.Console",
    "VM.GuestAgent.Audit",
    "VM.GuestAgent.FileRead",
    "VM.GuestAgent.FileSystemMgmt",
    "VM.GuestAgent.FileWrite",
    "VM.GuestAgent.Unrestricted",
    "VM.Migrate",
    "VM.PowerMgmt",
    "VM.Replicate",
    "VM.Snapshot",
    "VM.Snapshot.Rollback",
];

/// The calls of this file.
pub(super) fn routes() -> Vec<Route> {
    let params = vec![Param::text("path").optional(), Param::text("userid").optional()];
    vec![
        Route::new("GET", "/access/permissions", params, permissions),
        Route::new("GET", "/access/ticket", vec![], |_| Ok(Reply::default())),
        Route::new("GET", "/access/users", vec![], |_| {
            Ok(Reply::from(json!([{"userid": "root@pam", "enable": 1, "expire": 0, "realm-type": "pam"}])))
        }),
        Route::new("GET", "/access/acl", vec![], |_| Ok(Reply::from(json!([])))),
    ]
}

fn permissions(call: &Call) -> Result<Reply, Failure> {
    if call.params.text("userid").is_some_and(|user| user != call.user) {
        return Ok(Reply::from(json!({})));
    }
    let all: Map<String, Value> = PRIVILEGES.iter().map(|name| ((*name).to_owned(), json!(1))).collect();
    let paths = call.params.text("path").map_or_else(|| PATHS.to_vec(), |path| vec![path]);
    Ok(Reply::from(Value::Object(paths.into_iter().map(|path| (path.to_owned(), Value::Object(all.clone()))).collect())))
}
