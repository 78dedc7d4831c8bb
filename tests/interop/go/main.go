// Fetches everything the Workload API gives with go-spiffe, speaks mTLS with itself, and prints one line of JSON.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

func main() {
	if err := run(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(socket, audience string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	client, err := workloadapi.New(ctx, workloadapi.WithAddr(socket))
	if err != nil {
		return err
	}
	defer client.Close()
	source, err := workloadapi.NewX509Source(ctx, workloadapi.WithClient(client))
	if err != nil {
		return fmt.Errorf("X509Source: %w", err)
	}
	defer source.Close()
	svid, err := source.GetX509SVID()
	if err != nil {
		return err
	}
	token, err := client.FetchJWTSVID(ctx, jwtsvid.Params{Audience: audience})
	if err != nil {
		return fmt.Errorf("FetchJWTSVID: %w", err)
	}
	jwtSource, err := workloadapi.NewJWTSource(ctx, workloadapi.WithClient(client))
	if err != nil {
		return fmt.Errorf("JWTSource: %w", err)
	}
	defer jwtSource.Close()
	checked, err := jwtsvid.ParseAndValidate(token.Marshal(), jwtSource, []string{audience})
	if err != nil {
		return fmt.Errorf("ParseAndValidate: %w", err)
	}
	said, err := echo(ctx, source, svid.ID)
	if err != nil {
		return fmt.Errorf("mTLS: %w", err)
	}
	return json.NewEncoder(os.Stdout).Encode(map[string]string{
		"id": svid.ID.String(), "jwt": checked.ID.String(), "peer": said,
	})
}

// echo speaks mTLS with itself: the server half writes who it saw.
func echo(ctx context.Context, source *workloadapi.X509Source, id spiffeid.ID) (string, error) {
	only := tlsconfig.AuthorizeID(id)
	mode := spiffetls.MTLSServerWithRawConfig(only, source, source)
	listener, err := spiffetls.ListenWithMode(ctx, "tcp", "127.0.0.1:0", mode)
	if err != nil {
		return "", err
	}
	defer listener.Close()
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
			return
		}
		peer, err := spiffetls.PeerIDFromConn(conn)
		if err != nil {
			return
		}
		_, _ = io.WriteString(conn, peer.String())
	}()
	conn, err := spiffetls.DialWithMode(ctx, "tcp", listener.Addr().String(), spiffetls.MTLSClientWithRawConfig(only, source, source))
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if _, err := conn.Write([]byte{1}); err != nil {
		return "", err
	}
	said, err := io.ReadAll(conn)
	return string(said), err
}
