//! What was asked for, checked: a `Plan` in hand proves that no flag contradicts another.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;

use svid_core::id::{IdError, SpiffeId, TrustDomain};

use super::endpoint::{Endpoint, EndpointError, overlap, parse_listen};
use super::flags::BootstrapArgs;
use super::upstream::{self, Upstream};

/// Longest path of a Unix socket: `sun_path` has 108 bytes, the last of them zero. Source: unix(7).
const MAX_SOCKET_BYTES: usize = 107;
/// Longest name of a service or upstream.
const MAX_NAME_BYTES: usize = 128;

/// What is wrong with the command line. Each is one line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mistake {
    /// A flag without which nothing can be written.
    #[error("{flag} is missing: {hint}")]
    Missing { flag: &'static str, hint: &'static str },
    /// Not a name that can stand in statistics and paths.
    #[error(
        "{flag}: {value:?} is no name: 1 to {MAX_NAME_BYTES} letters, digits, dots, dashes and underscores, beginning with a \
         letter or digit"
    )]
    Name { flag: &'static str, value: String },
    /// Not the SPIFFE ID of a workload.
    #[error("{flag}: {value:?} is not the SPIFFE ID of a workload: {source}")]
    Id { flag: &'static str, value: String, source: IdError },
    /// Not a trust domain.
    #[error("{flag}: {value:?} is not a trust domain: {source}")]
    TrustDomain { flag: &'static str, value: String, source: IdError },
    /// Not a place to connect to or listen at.
    #[error("{flag}: {value:?} {source}")]
    Endpoint { flag: &'static str, value: String, source: EndpointError },
    /// A word that is none of those allowed.
    #[error("{flag}: {value:?} is unknown; there is {allowed}")]
    Word { flag: &'static str, value: String, allowed: &'static str },
    /// A value that breaks the form its flag asks for.
    #[error("{flag}: {value:?} {why}")]
    Value { flag: &'static str, value: String, why: String },
    /// Two listeners want one port.
    #[error("port {port} is used twice: by {first} and by {second}")]
    PortTwice { port: u16, first: String, second: String },
    /// Envoy would call itself.
    #[error(
        "{flag}: {value} is where Envoy itself listens ({listener}), so it would call itself without end"
    )]
    Loop { flag: &'static str, value: String, listener: String },
    /// Two upstreams of one name.
    #[error("--upstream: there are two named {0:?}")]
    UpstreamTwice(String),
    /// Strict and permissive ports refuse everybody who is not named.
    #[error(
        "--allow is missing: without it nobody may call; name each caller's SPIFFE ID, or let in everybody with \
         --allow-any-in-trust-domain NAME"
    )]
    NobodyMayCall,
    /// A policy that would not be enforced anywhere.
    #[error("--allow has no effect with mode disable on every port: plaintext callers have no identity")]
    AllowUnused,
}

/// Whom a port lets in, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// mTLS only.
    Strict,
    /// mTLS and plaintext.
    Permissive,
    /// Plaintext only.
    Disable,
}

impl Mode {
    fn parse(flag: &'static str, value: &str) -> Result<Self, Mistake> {
        match value {
            "strict" => Ok(Self::Strict),
            "permissive" => Ok(Self::Permissive),
            "disable" => Ok(Self::Disable),
            _ => Err(Mistake::Word { flag, value: value.into(), allowed: "strict, permissive and disable" }),
        }
    }
}

/// What is spoken inside the TLS connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP; HTTP/1.1 to the service.
    Http,
    /// HTTP; HTTP/2 to the service.
    Http2,
    /// Anything.
    Tcp,
}

impl Protocol {
    /// Reads the word.
    ///
    /// # Errors
    /// [`Mistake::Word`].
    pub fn parse(flag: &'static str, value: &str) -> Result<Self, Mistake> {
        match value {
            "http" => Ok(Self::Http),
            "http2" => Ok(Self::Http2),
            "tcp" => Ok(Self::Tcp),
            _ => Err(Mistake::Word { flag, value: value.into(), allowed: "http, http2 and tcp" }),
        }
    }
}

/// Who Envoy is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// In statistics, the access log and paths.
    pub name: String,
    /// Name of its certificate at the agent: a SPIFFE ID, or `default`.
    pub svid: String,
}

/// One inbound port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Where callers connect.
    pub listen: SocketAddr,
    /// Whom it lets in.
    pub mode: Mode,
    /// The service behind it.
    pub to: Endpoint,
    /// Cluster of that service.
    pub cluster: String,
}

/// Who may call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Callers {
    /// These workloads.
    pub ids: BTreeSet<SpiffeId>,
    /// Every workload of these trust domains.
    pub trust_domains: BTreeSet<TrustDomain>,
}

impl Callers {
    /// Every trust domain that a caller may come from.
    pub fn all_trust_domains(&self) -> BTreeSet<TrustDomain> {
        self.ids.iter().map(SpiffeId::trust_domain).chain(self.trust_domains.iter().cloned()).collect()
    }

    fn is_empty(&self) -> bool {
        self.ids.is_empty() && self.trust_domains.is_empty()
    }
}

/// What to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Who Envoy is.
    pub service: Service,
    /// The agent's Workload API and SDS socket.
    pub agent_socket: String,
    /// Envoy's admin socket.
    pub admin_socket: String,
    /// Inbound ports, that of `--listen` first.
    pub ports: Vec<Port>,
    /// Who may call the ports that ask for a certificate.
    pub callers: Callers,
    /// Whom the service calls.
    pub upstreams: Vec<Upstream>,
    /// What the service speaks.
    pub protocol: Protocol,
    /// Seconds after which a connection to an upstream is replaced.
    pub max_connection_age: u32,
}

impl Plan {
    /// Checks every flag, and each against the others.
    ///
    /// # Errors
    /// All mistakes, in the order of the flags.
    pub fn check(flags: &BootstrapArgs, agent_socket: &Path) -> Result<Self, Vec<Mistake>> {
        let mut found = Mistakes::default();
        let service = found.take(service(flags));
        let protocol = found.take(Protocol::parse("--protocol", &flags.protocol));
        let ports = ports(flags, &mut found);
        let callers = callers(flags, &mut found);
        let upstreams = upstream::parse_all(&flags.upstream, &mut found);
        let max_connection_age = found.take(age(&flags.max_connection_age));
        let agent_socket = found.take(socket_path("--agent-socket", agent_socket));
        let admin = match (&flags.admin_socket, &service) {
            (Some(path), _) => path.clone(),
            (None, Some(service)) => format!("/run/svid-envoy/{}/admin.sock", service.name).into(),
            (None, None) => "/run/svid-envoy/admin.sock".into(),
        };
        let admin_socket = found.take(socket_path("--admin-socket", &admin));
        check_ports(&ports, &upstreams, &mut found);
        check_callers(&ports, &callers, !flags.allow.is_empty(), &mut found);
        // A part that is missing left a mistake behind.
        let plan = move || {
            Some(Self {
                service: service?,
                agent_socket: agent_socket?,
                admin_socket: admin_socket?,
                ports,
                callers,
                upstreams,
                protocol: protocol?,
                max_connection_age: max_connection_age?,
            })
        };
        match (found.0.is_empty(), plan()) {
            (true, Some(plan)) => Ok(plan),
            (_, _) => Err(found.0),
        }
    }

    /// What the writer of the configuration should know, one line each.
    pub fn notes(&self) -> Vec<String> {
        let outside = self.ports.iter().filter(|port| !port.to.is_loopback());
        let plaintext =
            |port: &Port| format!("note: {} is not on this machine, and Envoy sends it plaintext", port.to);
        let open = self.ports.iter().filter(|port| port.mode != Mode::Strict);
        let unproved = |port: &Port| {
            format!(
                "note: port {} takes plaintext: whoever reaches it is served, without an identity",
                port.listen.port()
            )
        };
        let local = |upstream: &Upstream| {
            format!(
                "{}: http://{} leads to {} as {}",
                upstream.name, upstream.listen, upstream.to, upstream.id
            )
        };
        outside
            .map(plaintext)
            .chain(open.map(unproved))
            .chain(self.upstreams.iter().map(|upstream| match upstream.protocol {
                Protocol::Tcp => local(upstream).replacen("http://", "", 1),
                Protocol::Http | Protocol::Http2 => local(upstream),
            }))
            .collect()
    }
}

/// Mistakes seen so far.
#[derive(Default)]
pub struct Mistakes(Vec<Mistake>);

impl Mistakes {
    /// The value, or remembers why there is none.
    pub fn take<T>(&mut self, result: Result<T, Mistake>) -> Option<T> {
        result.map_err(|mistake| self.push(mistake)).ok()
    }

    /// Remembers a mistake.
    pub fn push(&mut self, mistake: Mistake) {
        self.0.push(mistake);
    }
}

/// A name that can stand in paths, statistics and Envoy's names.
///
/// # Errors
/// [`Mistake::Name`].
pub fn name(flag: &'static str, value: &str) -> Result<String, Mistake> {
    let first = value.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    let rest = value.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'));
    match first && rest && value.len() <= MAX_NAME_BYTES {
        true => Ok(value.to_owned()),
        false => Err(Mistake::Name { flag, value: value.into() }),
    }
}

/// The SPIFFE ID of a workload.
///
/// # Errors
/// [`Mistake::Id`].
pub fn workload(flag: &'static str, value: &str) -> Result<SpiffeId, Mistake> {
    let id = value.parse::<SpiffeId>().and_then(|id| id.require_workload(&id.trust_domain()).map(|()| id));
    id.map_err(|source| Mistake::Id { flag, value: value.into(), source })
}

fn trust_domain(flag: &'static str, value: &str) -> Result<TrustDomain, Mistake> {
    TrustDomain::from_name_or_id(value).map_err(|source| Mistake::TrustDomain {
        flag,
        value: value.into(),
        source,
    })
}

fn service(flags: &BootstrapArgs) -> Result<Service, Mistake> {
    let Some(text) = &flags.service else {
        return Err(Mistake::Missing {
            flag: "--service",
            hint: "a name, or the SPIFFE ID that Envoy shows",
        });
    };
    if text.contains(':') {
        if let Some(value) = &flags.trust_domain {
            let why = "belongs to a bare --service NAME, and this --service is a SPIFFE ID already".into();
            return Err(Mistake::Value { flag: "--trust-domain", value: value.clone(), why });
        }
        let id = workload("--service", text)?;
        let short = id.path().trim_start_matches('/').replace('/', "-");
        return Ok(Service { name: name("--service", &short)?, svid: id.to_string() });
    }
    let name = name("--service", text)?;
    let svid = match &flags.trust_domain {
        Some(text) => {
            let trust_domain = trust_domain("--trust-domain", text)?;
            workload("--service", &format!("{}/{name}", trust_domain.id()))?.to_string()
        }
        None => "default".into(),
    };
    Ok(Service { name, svid })
}

fn listen(flag: &'static str, value: &str) -> Result<SocketAddr, Mistake> {
    parse_listen(value).map_err(|source| Mistake::Endpoint { flag, value: value.into(), source })
}

/// A place to connect to.
///
/// # Errors
/// [`Mistake::Endpoint`].
pub fn endpoint(flag: &'static str, value: &str) -> Result<Endpoint, Mistake> {
    value.parse().map_err(|source| Mistake::Endpoint { flag, value: value.into(), source })
}

fn ports(flags: &BootstrapArgs, found: &mut Mistakes) -> Vec<Port> {
    let listen_at = flags.listen.as_deref().ok_or(Mistake::Missing {
        flag: "--listen",
        hint: "the port that callers connect to, such as --listen 8443",
    });
    let listen_at = found.take(listen_at.and_then(|text| listen("--listen", text)));
    let to = flags.to.as_deref().ok_or(Mistake::Missing {
        flag: "--to",
        hint: "where the service itself listens, such as --to 127.0.0.1:8080",
    });
    let to = found.take(to.and_then(|text| endpoint("--to", text)));
    let mode = found.take(Mode::parse("--mode", &flags.mode));
    let more: Vec<_> = flags.port.iter().filter_map(|text| found.take(port(text))).collect();
    let Some(to) = to else { return Vec::new() };
    let main = listen_at.zip(mode).map(|(listen, mode)| (listen, mode, None));
    let whole = |(listen, mode, own): (SocketAddr, Mode, Option<Endpoint>)| {
        let cluster = match &own {
            Some(own) if *own != to => format!("local_service_{}", listen.port()),
            _ => "local_service".to_owned(),
        };
        Port { listen, mode, to: own.unwrap_or_else(|| to.clone()), cluster }
    };
    main.into_iter().chain(more).map(whole).collect()
}

fn port(text: &str) -> Result<(SocketAddr, Mode, Option<Endpoint>), Mistake> {
    let value = |why: &str| Mistake::Value { flag: "--port", value: text.into(), why: why.into() };
    let (at, rest) = text.split_once('=').ok_or_else(|| value("is not PORT=MODE"))?;
    let at = listen("--port", at)?;
    let mut parts = rest.split(',');
    let mode = Mode::parse("--port", parts.next().unwrap_or_default())?;
    let mut to = None;
    for part in parts {
        match part.split_once('=') {
            Some(("to", place)) if to.is_none() => to = Some(endpoint("--port", place)?),
            _ => return Err(value("has something behind the mode that is not one to=HOST:PORT")),
        }
    }
    Ok((at, mode, to))
}

fn callers(flags: &BootstrapArgs, found: &mut Mistakes) -> Callers {
    let ids = flags.allow.iter().filter_map(|text| found.take(workload("--allow", text))).collect();
    let any = |text: &String| found.take(trust_domain("--allow-any-in-trust-domain", text));
    let trust_domains = flags.allow_any_in_trust_domain.iter().filter_map(any).collect();
    Callers { ids, trust_domains }
}

fn age(text: &str) -> Result<u32, Mistake> {
    match text.parse() {
        Ok(seconds) if (1..=86_400).contains(&seconds) => Ok(seconds),
        _ => Err(Mistake::Value {
            flag: "--max-connection-age",
            value: text.into(),
            why: "is no number of seconds from 1 to 86400".into(),
        }),
    }
}

fn socket_path(flag: &'static str, path: &Path) -> Result<String, Mistake> {
    let mistake = |why: String| Err(Mistake::Value { flag, value: path.display().to_string(), why });
    match path.to_str() {
        None => mistake("is not UTF-8".into()),
        Some(text) if !text.starts_with('/') => mistake("is not an absolute path".into()),
        Some(text) if text.len() > MAX_SOCKET_BYTES => mistake(format!(
            "is too long for a Unix socket: {} bytes, {MAX_SOCKET_BYTES} allowed",
            text.len()
        )),
        Some(text) => Ok(text.to_owned()),
    }
}

/// No two listeners at one port, and no way round in a circle.
fn check_ports(ports: &[Port], upstreams: &[Upstream], found: &mut Mistakes) {
    let inbound = ports.iter().enumerate().map(|(at, port)| match at {
        0 => (port.listen, format!("--listen {}", port.listen)),
        _ => (port.listen, format!("--port {}", port.listen)),
    });
    let outbound = upstreams.iter().map(|upstream| {
        (upstream.listen, format!("--upstream {} (listen {})", upstream.name, upstream.listen))
    });
    let all: Vec<(SocketAddr, String)> = inbound.chain(outbound).collect();
    for (at, (address, second)) in all.iter().enumerate() {
        if let Some((_, first)) = all[..at].iter().find(|(earlier, _)| overlap(*earlier, *address)) {
            let (first, second) = (first.clone(), second.clone());
            found.push(Mistake::PortTwice { port: address.port(), first, second });
        }
    }
    let mut seen = BTreeSet::new();
    for port in ports.iter().filter(|port| port.to.is_loopback() && seen.insert(port.to.to_string())) {
        // A name of loopback is any address of it.
        let meets = |address: &SocketAddr| {
            address.port() == port.to.port && (address.ip().is_unspecified() || address.ip().is_loopback())
        };
        if let Some((_, listener)) = all.iter().find(|(address, _)| meets(address)) {
            let flag = if port.cluster == "local_service" { "--to" } else { "--port" };
            found.push(Mistake::Loop { flag, value: port.to.to_string(), listener: listener.clone() });
        }
    }
}

fn check_callers(ports: &[Port], callers: &Callers, named: bool, found: &mut Mistakes) {
    let asks = ports.iter().any(|port| port.mode != Mode::Disable);
    match (asks, callers.is_empty()) {
        // A name that was mistyped has its own line already.
        (true, true) if !named => found.push(Mistake::NobodyMayCall),
        (false, false) if !ports.is_empty() => found.push(Mistake::AllowUnused),
        _ => {}
    }
}
