"""Runs before a frozen program: turns it into the process for PortAudio if it was started as that."""

import sys

if sys.argv[1:2] == ["--speech-devices"]:
    from speech.sound.devices import main

    main()
