# Where the units put the sockets, for svid-server, svid-agent and svidctl.
export SPIRE_SERVER_PRIVATE_SOCKET=/run/svid-server/api.sock
export SPIRE_AGENT_PUBLIC_SOCKET=/run/svid-agent/public/api.sock
export SVID_AGENT_ADMIN_SOCKET=/run/svid-agent/private/admin.sock
export SPIFFE_ENDPOINT_SOCKET=unix:///run/svid-agent/public/api.sock
