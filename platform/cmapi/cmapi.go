// SPDX-License-Identifier: Apache-2.0

// Package cmapi is the gRPC API of the container engine: the one of Eclipse Kanto's container management with its names and
// numbers, and a second service with what that does not have.
package cmapi
