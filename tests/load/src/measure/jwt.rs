//! NewJWTSVID.

use anyhow::Result;
use svid_proto::spire::api::server::svid::v1::NewJwtsvidRequest;
use svid_proto::spire::api::server::svid::v1::svid_client::SvidClient;

use super::Watch;
use super::sign::entries_of_own_agent;
use crate::cli::Common;
use crate::conn::{Http2, origin};
use crate::drive::{Caller, closed};
use crate::one_core;
use crate::report::Report;
use crate::site::Site;
use crate::stats::Failure;

struct Asker {
    client: SvidClient<Http2>,
    request: NewJwtsvidRequest,
}

impl Caller for Asker {
    async fn call(&mut self) -> Option<Result<u64, Failure>> {
        let answer = self.client.new_jwtsvid(self.request.clone()).await;
        Some(match answer {
            Ok(answer) if answer.get_ref().svid.is_some() => Ok(1),
            Ok(_) => Err(Failure::new("BadAnswer", "no SVID")),
            Err(status) => Err(status.into()),
        })
    }
}

pub(super) async fn run(common: &Common, connections: usize) -> Result<Report> {
    let callers = common.callers.unwrap_or(16);
    let site = Site::open(common).await?;
    let (agent, ids) = entries_of_own_agent(&site, callers).await?;
    let mut shared = Vec::with_capacity(connections);
    for _ in 0..connections {
        shared.push(agent.connect().await?);
    }
    let asker = |(connection, id): (&Http2, &String)| Asker {
        client: SvidClient::with_origin(connection.clone(), origin()),
        request: NewJwtsvidRequest {
            entry_id: id.clone(),
            audience: vec!["spiffe://example.org/api".to_owned()],
        },
    };
    let askers = shared.iter().cycle().zip(&ids).map(asker).collect();
    let one_core = one_core::es256()?;
    let watch = Watch::server(common)?;
    let outcome = closed(askers, common.limit()).await;
    let report = watch.report("jwt", "JWT-SVIDs", callers, outcome)?;
    site.delete(&ids).await?;
    Ok(report.against(one_core::ES256, one_core))
}
