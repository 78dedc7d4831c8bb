//! The Entry service. Source: `spire-server.md`, 1.8 and section 3.

use std::pin::Pin;

use futures_util::Stream;
use svid_core::entry::EntryId;
use svid_core::id::TrustDomain;
use svid_proto::convert::{
    ConvertError, EntryFields, apply_entry_mask, entry_to_wire, member_id, selectors_from_wire, set_match,
    workload_id,
};
use svid_proto::spire::api::server::entry::v1::{self as wire, entry_server::Entry};
use svid_proto::spire::api::types;
use tonic::{Code, Request, Response, Status, Streaming};

use super::audit::Fields;
use super::caller::Call;
use super::status::{invalid, invalid_argument, item, item_ok, status, store_code};
use super::{agent_of, call_of, service};
use crate::directory::{EntryFilter, Page};
use crate::store::{CreateEntry, Created, EntryPatch, StoreError, UpdateEntry};

service!(EntryApi);

/// Counting and listing have filters of the same shape and of different types.
macro_rules! read_filter {
    ($filter:expr, $trust_domain:expr) => {
        match $filter {
            None => Ok(EntryFilter::default()),
            Some(filter) => FilterParts {
                spiffe_id: filter.by_spiffe_id.as_ref(),
                parent_id: filter.by_parent_id.as_ref(),
                selectors: filter.by_selectors.as_ref(),
                federates_with: filter.by_federates_with.as_ref(),
                hint: filter.by_hint.as_ref(),
                downstream: filter.by_downstream,
            }
            .parse($trust_domain),
        }
    };
}

struct FilterParts<'a> {
    spiffe_id: Option<&'a types::Spiffeid>,
    parent_id: Option<&'a types::Spiffeid>,
    selectors: Option<&'a types::SelectorMatch>,
    federates_with: Option<&'a types::FederatesWithMatch>,
    hint: Option<&'a String>,
    downstream: Option<bool>,
}

impl FilterParts<'_> {
    fn parse(&self, trust_domain: &TrustDomain) -> Result<EntryFilter, Status> {
        let parent = |id| {
            member_id(Some(id), trust_domain).map_err(|error| invalid("malformed parent ID filter", error))
        };
        let spiffe = |id| {
            workload_id(Some(id), trust_domain).map_err(|error| invalid("malformed SPIFFE ID filter", error))
        };
        Ok(EntryFilter {
            hint: self.hint.cloned(),
            parent_id: self.parent_id.map(parent).transpose()?,
            spiffe_id: self.spiffe_id.map(spiffe).transpose()?,
            selectors: self.selectors.map(selectors_filter).transpose()?,
            federates_with: self.federates_with.map(federates_filter).transpose()?,
            // SPIRE's commands always send this field; there `false` asks for all entries, not for the others.
            downstream: self.downstream.filter(|only| *only),
        })
    }
}

fn selectors_filter(
    filter: &types::SelectorMatch,
) -> Result<(svid_core::selector::SelectorSet, svid_core::selector::SetMatch), Status> {
    const WHERE: &str = "malformed selectors filter";
    let selectors = selectors_from_wire(&filter.selectors).map_err(|error| invalid(WHERE, error))?;
    if selectors.is_empty() {
        return Err(invalid(WHERE, "empty selector set"));
    }
    Ok((selectors, set_match(filter.r#match).ok_or_else(|| invalid(WHERE, "unknown match behavior"))?))
}

fn federates_filter(
    filter: &types::FederatesWithMatch,
) -> Result<(Vec<TrustDomain>, svid_core::selector::SetMatch), Status> {
    const WHERE: &str = "malformed federates with filter";
    let parse = |name: &String| TrustDomain::from_name_or_id(name).map_err(|error| invalid(WHERE, error));
    let trust_domains = filter.trust_domains.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
    if trust_domains.is_empty() {
        return Err(invalid(WHERE, "empty trust domain set"));
    }
    Ok((trust_domains, set_match(filter.r#match).ok_or_else(|| invalid(WHERE, "unknown match behavior"))?))
}

/// Sizes of zero and below mean everything; a token is the last row that was shown.
pub(super) fn page(size: i32, token: &str, what: &str) -> Result<Page, Status> {
    let size = usize::try_from(size).unwrap_or_default();
    if size == 0 || token.is_empty() {
        return Ok(Page { after: 0, size });
    }
    let after = token
        .parse()
        .map_err(|_| status(Code::Internal, what, Some(&format!("could not parse token '{token}'"))))?;
    Ok(Page { after, size })
}

pub(super) fn next_token(next: Option<u64>) -> String {
    next.map(|row| row.to_string()).unwrap_or_default()
}

fn masked(entry: &svid_core::entry::Entry, mask: Option<&types::EntryMask>) -> types::Entry {
    let mut entry = entry_to_wire(entry);
    apply_entry_mask(&mut entry, mask);
    entry
}

fn audit_entry(fields: &mut Fields, entry: &types::Entry) {
    let id = |id: &Option<types::Spiffeid>| {
        id.as_ref().map(|id| format!("spiffe://{}{}", id.trust_domain, id.path))
    };
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let selectors: Vec<String> =
        entry.selectors.iter().map(|selector| format!("{}:{}", selector.r#type, selector.value)).collect();
    fields.entry_id = some(&entry.id);
    fields.spiffe_id = id(&entry.spiffe_id);
    fields.parent_id = id(&entry.parent_id);
    fields.selectors = some(&selectors.join(","));
    fields.admin = Some(entry.admin);
    fields.downstream = Some(entry.downstream);
    fields.dns_name = some(&entry.dns_names.join(","));
    fields.federates_with = some(&entry.federates_with.join(","));
    fields.hint = some(&entry.hint);
    fields.ttl = Some(entry.x509_svid_ttl.into());
    fields.expires_at = Some(entry.expires_at.to_string());
}

fn item_failed(call: &Call, code: Code, message: &str, inner: &dyn std::fmt::Display) -> types::Status {
    let status = status(code, message, Some(inner));
    tracing::error!(service = call.method.service, method = call.method.name, error = %inner, "{message}");
    item(&status)
}

/// The answer to a malformed entry. Some rules are the datastore's in SPIRE, and say so.
fn refused(call: &Call, by_datastore: &str, error: &ConvertError) -> types::Status {
    let message = match error {
        ConvertError::Entry(rule) if rule.is_of_datastore() => by_datastore,
        _ => "failed to convert entry",
    };
    item_failed(call, Code::InvalidArgument, message, error)
}

impl EntryApi {
    fn checked(&self, entry: &types::Entry) -> Result<CreateEntry, ConvertError> {
        let spec = EntryFields::spec_from_wire(entry, &self.0.trust_domain)?;
        let id = match entry.id.as_str() {
            "" => None,
            id => Some(id.parse::<EntryId>()?),
        };
        Ok(CreateEntry { id, spec })
    }

    fn checked_update(
        &self,
        entry: &types::Entry,
        mask: Option<&types::EntryMask>,
    ) -> Result<UpdateEntry, ConvertError> {
        let id = entry.id.parse::<EntryId>()?;
        let fields = EntryFields::from_wire(entry, mask, &self.0.trust_domain)?;
        Ok(UpdateEntry { id, patch: patch(fields) })
    }
}

fn patch(fields: EntryFields) -> EntryPatch {
    EntryPatch {
        spiffe_id: fields.spiffe_id,
        parent_id: fields.parent_id,
        selectors: fields.selectors,
        x509_svid_ttl: fields.x509_svid_ttl,
        jwt_svid_ttl: fields.jwt_svid_ttl,
        federates_with: fields.federates_with,
        admin: fields.admin,
        downstream: fields.downstream,
        expires_at: fields.expires_at,
        dns_names: fields.dns_names,
        store_svid: fields.store_svid,
        hint: fields.hint,
        disable_x509_svid_prefetch: fields.disable_x509_svid_prefetch,
        jwt_svid_include_jti: fields.jwt_svid_include_jti,
    }
}

/// Splits a batch into what passed its checks, with its place, and the places of the others with their errors.
type Checked<G, E> = (Vec<G>, Vec<Option<E>>);

fn split<T, G, E>(items: &[T], check: impl Fn(&T) -> Result<G, E>) -> Checked<G, E> {
    let mut good = Vec::with_capacity(items.len());
    let mut errors = Vec::with_capacity(items.len());
    for item in items {
        match check(item) {
            Ok(value) => {
                good.push(value);
                errors.push(None);
            }
            Err(error) => errors.push(Some(error)),
        }
    }
    (good, errors)
}

fn created(
    call: &Call,
    result: Result<Created, StoreError>,
    mask: Option<&types::EntryMask>,
) -> (types::Status, Option<types::Entry>) {
    match result {
        Ok(Created::New(entry)) => (item_ok(), Some(masked(&entry, mask))),
        Ok(Created::Existing(entry)) => {
            let status = Status::already_exists("similar entry already exists");
            (item(&status), Some(masked(&entry, mask)))
        }
        Err(error) => (item_failed(call, store_code(&error), "failed to create entry", &error), None),
    }
}

fn updated(
    call: &Call,
    result: Result<svid_core::entry::Entry, StoreError>,
    mask: Option<&types::EntryMask>,
) -> (types::Status, Option<types::Entry>) {
    match result {
        Ok(entry) => (item_ok(), Some(masked(&entry, mask))),
        Err(error) => (item_failed(call, store_code(&error), "failed to update entry", &error), None),
    }
}

const VANISHED: StoreError = StoreError::Closed;

#[tonic::async_trait]
impl Entry for EntryApi {
    async fn count_entries(
        &self,
        request: Request<wire::CountEntriesRequest>,
    ) -> Result<Response<wire::CountEntriesResponse>, Status> {
        let filter = read_filter!(&request.get_ref().filter, &self.0.trust_domain)?;
        let count = self.0.directory.count_entries(&filter);
        Ok(Response::new(wire::CountEntriesResponse { count: i32::try_from(count).unwrap_or(i32::MAX) }))
    }

    async fn list_entries(
        &self,
        request: Request<wire::ListEntriesRequest>,
    ) -> Result<Response<wire::ListEntriesResponse>, Status> {
        let request = request.into_inner();
        let filter = read_filter!(&request.filter, &self.0.trust_domain)?;
        let page = page(request.page_size, &request.page_token, "failed to list entries")?;
        let listing = self.0.directory.list_entries(&filter, page);
        Ok(Response::new(wire::ListEntriesResponse {
            entries: listing.items.iter().map(|entry| masked(entry, request.output_mask.as_ref())).collect(),
            next_page_token: next_token(listing.next),
        }))
    }

    async fn get_entry(
        &self,
        request: Request<wire::GetEntryRequest>,
    ) -> Result<Response<types::Entry>, Status> {
        let call = call_of(&request)?;
        let request = request.into_inner();
        if request.id.is_empty() {
            return Err(invalid_argument("missing ID"));
        }
        call.audit.add(|fields| fields.entry_id = Some(request.id.clone()));
        let entry =
            self.0.directory.entry(&request.id).ok_or_else(|| Status::not_found("entry not found"))?;
        Ok(Response::new(masked(&entry, request.output_mask.as_ref())))
    }

    async fn batch_create_entry(
        &self,
        request: Request<wire::BatchCreateEntryRequest>,
    ) -> Result<Response<wire::BatchCreateEntryResponse>, Status> {
        let call = call_of(&request)?;
        let request = request.into_inner();
        let (good, errors) = split(&request.entries, |entry| self.checked(entry));
        let mut stored = self.0.store.create_entries(good, self.0.now_unix()).await.into_iter();
        let mut results = Vec::with_capacity(errors.len());
        for (entry, error) in request.entries.iter().zip(errors) {
            let (status, created) = match error {
                Some(error) => (refused(&call, "failed to create entry: datastore-validation", &error), None),
                None => created(&call, stored.next().unwrap_or(Err(VANISHED)), request.output_mask.as_ref()),
            };
            call.audit_item(Code::from(status.code), &status.message, |fields| audit_entry(fields, entry));
            results.push(wire::batch_create_entry_response::Result { status: Some(status), entry: created });
        }
        Ok(Response::new(wire::BatchCreateEntryResponse { results }))
    }

    async fn batch_update_entry(
        &self,
        request: Request<wire::BatchUpdateEntryRequest>,
    ) -> Result<Response<wire::BatchUpdateEntryResponse>, Status> {
        let call = call_of(&request)?;
        let request = request.into_inner();
        let mask = request.input_mask.as_ref();
        let (good, errors) = split(&request.entries, |entry| self.checked_update(entry, mask));
        let mut stored = self.0.store.update_entries(good).await.into_iter();
        let mut results = Vec::with_capacity(errors.len());
        for (entry, error) in request.entries.iter().zip(errors) {
            let (status, updated) = match error {
                Some(error) => (refused(&call, "failed to update entry: datastore-validation", &error), None),
                None => updated(&call, stored.next().unwrap_or(Err(VANISHED)), request.output_mask.as_ref()),
            };
            call.audit_item(Code::from(status.code), &status.message, |fields| audit_entry(fields, entry));
            results.push(wire::batch_update_entry_response::Result { status: Some(status), entry: updated });
        }
        Ok(Response::new(wire::BatchUpdateEntryResponse { results }))
    }

    async fn batch_delete_entry(
        &self,
        request: Request<wire::BatchDeleteEntryRequest>,
    ) -> Result<Response<wire::BatchDeleteEntryResponse>, Status> {
        let call = call_of(&request)?;
        let ids = request.into_inner().ids;
        let (good, errors) = split(&ids, |id| id.parse::<EntryId>().map_err(|_| id.clone()));
        let mut stored = self.0.store.delete_entries(good).await.into_iter();
        let mut results = Vec::with_capacity(ids.len());
        for (id, error) in ids.into_iter().zip(errors) {
            let status = match error {
                Some(id) if id.is_empty() => item(&invalid_argument("missing entry ID")),
                Some(_) => item(&Status::not_found("entry not found")),
                None => match stored.next().unwrap_or(Err(VANISHED)) {
                    Ok(()) => item_ok(),
                    Err(StoreError::NotFound(_)) => item(&Status::not_found("entry not found")),
                    Err(error) => item_failed(&call, store_code(&error), "failed to delete entry", &error),
                },
            };
            call.audit_item(Code::from(status.code), &status.message, |fields| {
                fields.entry_id = Some(id.clone())
            });
            results.push(wire::batch_delete_entry_response::Result { status: Some(status), id });
        }
        Ok(Response::new(wire::BatchDeleteEntryResponse { results }))
    }

    async fn get_authorized_entries(
        &self,
        request: Request<wire::GetAuthorizedEntriesRequest>,
    ) -> Result<Response<wire::GetAuthorizedEntriesResponse>, Status> {
        let call = call_of(&request)?;
        let agent = agent_of(&call)?;
        let mask = request.into_inner().output_mask;
        let entries = self.0.directory.authorized_entries(&agent.id, self.0.now_unix());
        let entries = entries.iter().map(|entry| masked(entry, mask.as_ref())).collect();
        Ok(Response::new(wire::GetAuthorizedEntriesResponse { entries }))
    }

    type SyncAuthorizedEntriesStream =
        Pin<Box<dyn Stream<Item = Result<wire::SyncAuthorizedEntriesResponse, Status>> + Send>>;

    async fn sync_authorized_entries(
        &self,
        request: Request<Streaming<wire::SyncAuthorizedEntriesRequest>>,
    ) -> Result<Response<Self::SyncAuthorizedEntriesStream>, Status> {
        let call = call_of(&request)?;
        let agent = agent_of(&call)?.clone();
        call.audit_later();
        // The set is fixed before the first message is read: a stream is a snapshot.
        let entries = self.0.directory.authorized_entries(&agent.id, self.0.now_unix());
        let stream = super::entry_sync::serve(self.0.clone(), call, agent, entries, request.into_inner())?;
        Ok(Response::new(Box::pin(stream)))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_a_true_downstream_filter_filters() {
        for (given, want) in [(None, None), (Some(false), None), (Some(true), Some(true))] {
            let parts = FilterParts {
                spiffe_id: None,
                parent_id: None,
                selectors: None,
                federates_with: None,
                hint: None,
                downstream: given,
            };
            let filter = parts.parse(&"example.org".parse().unwrap()).unwrap();
            assert_eq!(filter.downstream, want, "{given:?}");
        }
    }
}
