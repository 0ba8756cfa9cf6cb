//! The table: which role a method needs, whether a tenant's own client may call it, and to which limit it counts. What is not in it is
//! denied.

use pvelet_proto::identity::{Identity, Role, Subject};

use crate::{error::Error, limits::Class};

/// What a method needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// `/<package>.<service>/<method>`
    pub path: &'static str,
    /// The least role.
    pub role: Role,
    /// Whether a tenant's client may call it, within its tenant.
    pub tenants: bool,
    /// To which limit it counts.
    pub class: Class,
}

impl Rule {
    /// The method's name without its service.
    pub fn method(&self) -> &'static str {
        self.path.rsplit('/').next().unwrap_or(self.path)
    }
}

const fn rule(path: &'static str, role: Role, tenants: bool, class: Class) -> Rule {
    Rule { path, role, tenants, class }
}

/// Every method that is served.
pub const TABLE: &[Rule] = &[
    rule("/pvelet.v1.HostService/GetHost", Role::Reader, true, Class::Read),
    rule("/pvelet.v1.HostService/WatchHost", Role::Reader, true, Class::Stream),
    rule("/pvelet.v1.HostService/AnnounceController", Role::Operator, false, Class::Mutation),
    rule("/pvelet.v1.HostService/AcceptController", Role::Admin, false, Class::Mutation),
    rule("/pvelet.v1.VmService/ListVms", Role::Reader, true, Class::Read),
    rule("/pvelet.v1.VmService/GetVm", Role::Reader, true, Class::Read),
    rule("/pvelet.v1.VmService/CloneVm", Role::Operator, true, Class::Mutation),
    rule("/pvelet.v1.VmService/ConfigureVm", Role::Operator, true, Class::Mutation),
    rule("/pvelet.v1.VmService/StartVm", Role::Operator, true, Class::Mutation),
    rule("/pvelet.v1.VmService/ShutdownVm", Role::Operator, true, Class::Mutation),
    rule("/pvelet.v1.VmService/StopVm", Role::Operator, true, Class::Mutation),
    rule("/pvelet.v1.VmService/ResetVm", Role::Operator, true, Class::Mutation),
    rule("/pvelet.v1.VmService/DeleteVm", Role::Operator, true, Class::Mutation),
    rule("/pvelet.v1.VolumeService/ListStorages", Role::Reader, true, Class::Read),
    rule("/pvelet.v1.VolumeService/ListVolumes", Role::Reader, true, Class::Read),
    rule("/pvelet.v1.VolumeService/GetVolume", Role::Reader, true, Class::Read),
    rule("/pvelet.v1.VolumeService/GetVolumeUsage", Role::Reader, true, Class::Read),
    rule("/pvelet.v1.VolumeService/CreateVolume", Role::Operator, true, Class::Mutation),
    rule("/pvelet.v1.VolumeService/DeleteVolume", Role::Operator, true, Class::Mutation),
    rule("/pvelet.v1.VolumeService/AttachVolume", Role::Operator, true, Class::Mutation),
    rule("/pvelet.v1.VolumeService/DetachVolume", Role::Operator, true, Class::Mutation),
    rule("/pvelet.v1.VolumeService/GrowVolume", Role::Operator, true, Class::Mutation),
    rule("/pvelet.v1.VolumeService/SetVolumeLimits", Role::Operator, true, Class::Mutation),
    rule("/pvelet.v1.VolumeService/SnapshotVolume", Role::Operator, true, Class::Mutation),
    rule("/pvelet.v1.VolumeService/DeleteVolumeSnapshot", Role::Operator, true, Class::Mutation),
    rule("/pvelet.v1.VolumeService/RollBackVolume", Role::Operator, true, Class::Mutation),
    rule("/pvelet.v1.VolumeService/MoveVolume", Role::Operator, true, Class::Mutation),
    rule("/pvelet.v1.VolumeService/HandOverVolume", Role::Operator, true, Class::Mutation),
    rule("/pvelet.v1.VolumeService/ReclaimVolumes", Role::Operator, true, Class::Mutation),
    rule("/pvelet.v1.NetworkService/GetNetwork", Role::Reader, false, Class::Read),
    rule("/pvelet.v1.NetworkService/PlanNetwork", Role::Reader, false, Class::Read),
    rule("/pvelet.v1.NetworkService/ApplyNetwork", Role::Operator, false, Class::Network),
    rule("/pvelet.v1.NetworkService/RemoveNetwork", Role::Operator, false, Class::Network),
    rule("/pvelet.v1.NetworkService/ConfirmNetwork", Role::Operator, false, Class::Mutation),
    rule("/pvelet.v1.NetworkService/RollbackNetwork", Role::Operator, false, Class::Mutation),
    rule("/pvelet.v1.NetworkService/ClearNetwork", Role::Admin, false, Class::Mutation),
    rule("/pvelet.v1.NetworkService/ProbeNetwork", Role::Operator, false, Class::Mutation),
    rule("/pvelet.v1.HealthService/GetHealth", Role::Reader, false, Class::Read),
    rule("/pvelet.v1.HealthService/WatchHealth", Role::Reader, false, Class::Stream),
    rule("/pvelet.v1.HealthService/RunCheck", Role::Operator, false, Class::Mutation),
    rule("/pvelet.v1.HealthService/Repair", Role::Operator, false, Class::Mutation),
    rule("/pvelet.v1.HealthService/ClearRepair", Role::Admin, false, Class::Mutation),
    rule("/pvelet.v1.CertificateService/GetCertificate", Role::Reader, false, Class::Read),
    rule("/pvelet.v1.CertificateService/CreateSigningRequest", Role::Admin, false, Class::Mutation),
    rule("/pvelet.v1.CertificateService/InstallCertificate", Role::Admin, false, Class::Mutation),
    rule("/pvelet.v1.OperationService/GetOperation", Role::Reader, true, Class::Read),
    rule("/pvelet.v1.OperationService/ListOperations", Role::Reader, true, Class::Read),
    rule("/pvelet.v1.OperationService/WatchOperations", Role::Reader, true, Class::Stream),
    rule("/pvelet.v1.OperationService/CancelOperation", Role::Operator, true, Class::Mutation),
    rule("/grpc.health.v1.Health/Check", Role::Reader, true, Class::Read),
    rule("/grpc.health.v1.Health/Watch", Role::Reader, true, Class::Stream),
    rule("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", Role::Reader, true, Class::Stream),
    rule("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", Role::Reader, true, Class::Stream),
];

/// Whether an identity may call a method at all.
///
/// # Errors
/// `Role` when it may not, or when the method does not stand in the table.
pub fn admit(identity: &Identity, path: &str) -> Result<&'static Rule, Error> {
    let refused = |needed: &str| {
        let role = match &identity.subject {
            Subject::Role { role, .. } => role.to_string(),
            Subject::Tenant { .. } => "tenant".to_owned(),
            Subject::Host { .. } => "host".to_owned(),
        };
        Error::Role { role, method: path.chars().take(128).collect(), needed: needed.to_owned() }
    };
    let rule = TABLE.iter().find(|r| r.path == path).ok_or_else(|| refused("a method of this agent's API"))?;
    match (&identity.subject, identity.role()) {
        (Subject::Tenant { .. }, _) if !rule.tenants => Err(refused(&format!("role {}, no tenant's client", rule.role))),
        (_, Some(role)) if role >= rule.role => Ok(rule),
        _ => Err(refused(&format!("role {}", rule.role))),
    }
}
