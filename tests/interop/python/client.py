"""Fetches everything the Workload API gives with the PyPI client, and prints one line of JSON about it."""

import json
import sys

from spiffe import WorkloadApiClient, X509Source

socket, audience = sys.argv[1], sys.argv[2]
with WorkloadApiClient(socket) as client:
    svid = client.fetch_x509_svid()
    bundles = client.fetch_x509_bundles()
    token = client.fetch_jwt_svid(audience={audience})
    valid = client.validate_jwt_svid(token.token, audience)
    jwt_bundles = client.fetch_jwt_bundles()
    own = svid.spiffe_id.trust_domain
    print(
        json.dumps(
            {
                "id": str(svid.spiffe_id),
                "chain": len(svid.cert_chain),
                "roots": len(bundles.get_bundle_for_trust_domain(own).x509_authorities),
                "jwt": str(valid.spiffe_id),
                "jwt_keys": len(jwt_bundles.get_bundle_for_trust_domain(own).jwt_authorities),
            }
        )
    )
with X509Source(socket_path=socket) as source:
    assert str(source.get_x509_context().default_svid.spiffe_id) == str(svid.spiffe_id)
