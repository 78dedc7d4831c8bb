//! `--upstream NAME=HOST:PORT,ID[,listen=ADDRESS:PORT][,protocol=tcp]`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use svid_core::id::SpiffeId;

use super::endpoint::{Endpoint, parse_listen};
use super::plan::{self, Mistake, Mistakes, Protocol};

const FLAG: &str = "--upstream";
/// Local port of the first upstream that names none; the next ones follow.
const FIRST_PORT: u16 = 15_001;

/// A service to call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// Its name here.
    pub name: String,
    /// Where it is.
    pub to: Endpoint,
    /// Who it must be.
    pub id: SpiffeId,
    /// Where the service finds it on this machine, always loopback.
    pub listen: SocketAddr,
    /// What is spoken.
    pub protocol: Protocol,
}

/// Reads all of them. The n-th without `listen` gets the port of its place in the row, so that adding one at the end
/// moves none.
pub fn parse_all(texts: &[String], found: &mut Mistakes) -> Vec<Upstream> {
    let mut upstreams: Vec<Upstream> = Vec::new();
    for (at, text) in texts.iter().enumerate() {
        let Some(upstream) = found.take(parse(text, at)) else { continue };
        if upstreams.iter().any(|earlier| earlier.name == upstream.name) {
            found.push(Mistake::UpstreamTwice(upstream.name));
            continue;
        }
        upstreams.push(upstream);
    }
    upstreams
}

fn parse(text: &str, at: usize) -> Result<Upstream, Mistake> {
    let value = |why: &str| Mistake::Value { flag: FLAG, value: text.into(), why: why.into() };
    let shape = || value("is not NAME=HOST:PORT,SPIFFE-ID");
    let (name, rest) = text.split_once('=').ok_or_else(shape)?;
    let mut parts = rest.split(',');
    let (to, id) = (parts.next().unwrap_or_default(), parts.next().ok_or_else(shape)?);
    let mut upstream = Upstream {
        name: plan::name(FLAG, name)?,
        to: plan::endpoint(FLAG, to)?,
        id: plan::workload(FLAG, id)?,
        listen: default_listen(at)
            .ok_or_else(|| value("is one too many for the local ports from 15001 on"))?,
        protocol: Protocol::Http,
    };
    for part in parts {
        match part.split_once('=') {
            Some(("listen", place)) => upstream.listen = listen(place)?,
            Some(("protocol", word)) => upstream.protocol = Protocol::parse(FLAG, word)?,
            _ => {
                return Err(value(
                    "has a part that is neither listen=ADDRESS:PORT nor protocol=http|http2|tcp",
                ));
            }
        }
    }
    Ok(upstream)
}

fn default_listen(at: usize) -> Option<SocketAddr> {
    let port = u16::try_from(at).ok().and_then(|at| FIRST_PORT.checked_add(at))?;
    Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port))
}

/// Loopback only: this is plaintext, and whoever connects speaks as the service.
fn listen(text: &str) -> Result<SocketAddr, Mistake> {
    let mistake = |why: String| Mistake::Value { flag: FLAG, value: format!("listen={text}"), why };
    let at = match text.contains(':') {
        true => parse_listen(text),
        false => parse_listen(&format!("127.0.0.1:{text}")),
    };
    let at = at.map_err(|error| mistake(error.to_string()))?;
    match at.ip().is_loopback() {
        true => Ok(at),
        false => Err(mistake(
            "is not a loopback address; whoever connects there speaks as this service, so others must not reach it"
                .into(),
        )),
    }
}
