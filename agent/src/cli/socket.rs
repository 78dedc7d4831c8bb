//! Where the agent listens: the flag, a template with an instance, the environment, the default.

use std::path::PathBuf;

use svid_daemon::flags::{FlagSet, Parsed};

use super::Env;

/// SPIRE's default Workload API socket.
pub(crate) const DEFAULT_SOCKET: &str = "/tmp/spire-agent/public/api.sock";
/// SPIRE's default admin socket.
pub(crate) const DEFAULT_ADMIN_SOCKET: &str = "/tmp/spire-agent/private/admin.sock";
const SOCKET_VAR: &str = "SPIRE_AGENT_PUBLIC_SOCKET";
const TEMPLATE_VAR: &str = "SPIRE_AGENT_PUBLIC_SOCKET_TEMPLATE";

/// Adds the flags that name the public socket.
pub(crate) fn flags(set: FlagSet) -> FlagSet {
    set.string("socketPath", DEFAULT_SOCKET, "Path to the SPIRE Agent API Unix domain socket").string(
        "instance",
        "",
        "Instance name to substitute into socket templates (env SPIRE_AGENT_PUBLIC_SOCKET_TEMPLATE).",
    )
}

/// The public socket that the flags and the environment mean.
pub(crate) fn resolve(flags: &Parsed, env: &Env<'_>) -> Result<PathBuf, String> {
    let var = |name: &str| (env.var)(name).unwrap_or_default();
    let (template, instance) = (var(TEMPLATE_VAR), flags.str("instance"));
    if !instance.is_empty() {
        if template.is_empty() {
            return Err(format!(
                " {TEMPLATE_VAR} environment variable must be defined when using the instance flag"
            ));
        }
        if !template.contains("%i") {
            return Err(format!("failed to find %i in {TEMPLATE_VAR}"));
        }
    }
    let given = flags.str("socketPath");
    let path = match (given, instance, var(SOCKET_VAR)) {
        (given, _, _) if given != DEFAULT_SOCKET => given.to_owned(),
        (_, instance, _) if !instance.is_empty() => template.replace("%i", instance),
        (_, _, var) if !var.is_empty() => var,
        _ => DEFAULT_SOCKET.to_owned(),
    };
    std::path::absolute(path).map_err(|err| err.to_string())
}
