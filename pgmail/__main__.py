"""`python -m pgmail`: the same as the command `pgmail`, for children that must run this very interpreter."""

from pgmail.app import main

if __name__ == "__main__":
    main()
