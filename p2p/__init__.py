"""What both ends of the wire share: messages, signatures, the session, and the overlay."""
